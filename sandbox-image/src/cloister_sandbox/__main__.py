"""Starts the exec server: `python -I -m cloister_sandbox`."""

import asyncio
import logging
import os
import sys

# The server never forks: tools start by vfork, and gRPC's fork handlers would only cost.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from . import signals
from .config import Config, ConfigError
from .server import Server, harden


def main() -> int:
    """Serve until the pod ends; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        config = Config.from_environment()
        harden()
        signals.block()

        async def serve() -> None:
            await Server(config).run()

        asyncio.run(serve())
    except ConfigError as error:
        logging.error("exec server: %s", error)  # noqa: LOG015, TRY400 - the sentence is all there is
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
