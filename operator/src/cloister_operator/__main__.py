"""`python -m cloister_operator`: settings from the environment, logs to stderr."""

import asyncio
import gc
import logging
import os
import sys

# Read when gRPC is loaded, which else writes a line of its own form for each handshake that fails:
# whoever reaches the port could fill the log.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from . import app, logs, settings


def main() -> int:
    """Run the operator; the exit code is 2 when a setting is wrong."""
    try:
        given = settings.load()
    except settings.SettingsError as error:
        print(f"cloister-operator: {error}", file=sys.stderr)
        return 2
    logs.set_up(given.log_level, given.log_format)
    # They log every watch and every request.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It warns that signals are ours, which they are on purpose.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    # kopf's thread decodes events while a claim waits for its next answer: at the default of 5 ms
    # each hand-over between them would cost a claim more than an API write does.
    sys.setswitchinterval(0.0005)
    # What was imported stays: a collection that walks through it stops every claim meanwhile.
    gc.collect()
    gc.freeze()
    return asyncio.run(app.run(given))


if __name__ == "__main__":
    sys.exit(main())
