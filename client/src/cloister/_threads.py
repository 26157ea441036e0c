"""Work on files in threads, which outlives nobody who relies on its end."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def finished(work: Callable[[], T]) -> T:
    """Run blocking work in a thread; a cancellation waits until it has ended.

    So that what it uses, a descriptor or a directory, can be closed afterwards.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await running
        raise
