"""Runs one exec server for as long as the process lives."""

import asyncio
import contextlib
import logging
import os
import resource

from . import signals
from .config import DEFAULT_PATH, Config, ConfigError
from .server import Server, harden

TOLD_TO_END = 143
"""As a shell calls an end by SIGTERM. After 0 the kubelet forgets why it evicted the pod."""
OPEN_FILES = 8192
"""Descriptors that this process may have, where its pod's limit allows: nodes give 1,024 at first,
and as many connections are taken. Few enough for programs that close all that they may have.
"""


def allow_descriptors() -> None:
    """Let this process, and all that it starts, have so many descriptors; takes none away."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    bounds = [OPEN_FILES, most] if most != resource.RLIM_INFINITY else [OPEN_FILES]
    if resource.RLIM_INFINITY != now < min(bounds):
        # Where a sandboxed runtime refuses it, there is what there is.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(bounds), most))


def main() -> int:
    """Serve until the pod ends.

    Returns:
        The exit code: 143 after a drain, 1 for settings it cannot run with.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # glibc looks for a tool in the PATH of the process that starts it, see spawn.
    os.environ["PATH"] = DEFAULT_PATH
    allow_descriptors()
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
    return TOLD_TO_END
