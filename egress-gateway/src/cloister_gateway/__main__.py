"""Runs one container of a gateway pod: front, names, sni, by-name or agent."""

import asyncio
import logging
import os
import sys

from . import byname, launch
from .settings import Settings, SettingsError


def main() -> int:
    """Run what the argument names.

    Returns:
        The exit code: 2 for no such part, 1 for what it cannot run with.
    """
    part = sys.argv[1] if len(sys.argv) == 2 else ""
    try:
        settings = Settings.load(os.environ)
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s"
        )
        settings = launch.fitted(settings)
        match part:
            case "front":
                launch.front(settings)
            case "names":
                launch.names(settings)
            case "sni":
                launch.sni(settings)
            case "by-name":
                byname.main(settings)
                return 0
            case "agent":
                return _agent(settings)
    except (SettingsError, launch.LaunchError, OSError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    print(f"gateway: front, names, sni, by-name or agent, not {part!r}", file=sys.stderr)
    return 2


def _agent(settings: Settings) -> int:
    # gRPC reads it when it is loaded, and tells of each handshake that fails otherwise.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Only this part needs them; the squids' containers start without.
    from .agent import Agent
    from .identity import IdentityError

    async def serve() -> None:
        await Agent(settings).run()

    try:
        asyncio.run(serve())
    except IdentityError as error:
        print(f"gateway: no identity, not serving: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
