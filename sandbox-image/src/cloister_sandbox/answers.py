"""Room for large answers: one that is sent takes twice its size until its reader has taken it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from .errors import Busy

LARGE = 1024 * 1024
"""Bytes from which on an answer needs room."""
AT_ONCE = 4
WAIT_SECONDS = 30.0


class Answers:
    """Lets a few large answers be sent at once, however many readers ask and then stall."""

    def __init__(self, at_once: int = AT_ONCE, seconds: float = WAIT_SECONDS) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """For as long as one is made and sent; raises Busy when there is none in time."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._room.acquire()
        except TimeoutError:
            raise Busy("TOO_MANY_CALLS", "large answers wait for their readers", 1.0) from None
        try:
            yield
        finally:
            self._room.release()
