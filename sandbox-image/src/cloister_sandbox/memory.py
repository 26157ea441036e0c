"""Giving memory back that large requests took.

gRPC leaves a failed call in a circle of references that holds its request, until the collector
comes by; and what is freed the C library keeps for later. Neither knows that a pod's memory is
bounded: ten failed calls of 20 MB each used to leave half a gigabyte.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
from pathlib import Path

EVERY_SECONDS = 5.0
SLACK = 32 * 1024 * 1024
"""Bytes that the server may grow by before it looks for what it can give back."""
_libc = ctypes.CDLL(None)


def resident() -> int:
    """Bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def give_back() -> None:
    """Collect what nothing refers to any more, and return free memory to the system."""
    gc.collect()
    trim = getattr(_libc, "malloc_trim", None)  # not every C library has it
    if trim is not None:
        trim(0)


async def watch() -> None:
    """Give back whenever the server has grown; ends when it is cancelled."""
    least = resident()
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        # Where descriptors or threads have run out, the next time will do.
        with contextlib.suppress(OSError, RuntimeError):
            now = resident()
            if now > least + SLACK:
                await asyncio.to_thread(give_back)
                # What is left is in use: not to be looked through again until there is more.
                least = resident()
            least = min(least, now)
