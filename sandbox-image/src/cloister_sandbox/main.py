"""Runs one exec server for as long as the process lives."""

import asyncio
import logging

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
