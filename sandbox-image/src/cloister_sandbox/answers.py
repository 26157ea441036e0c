"""Room for large answers: one that is sent takes twice its size until its reader has taken it.

Thousands of calls can be under way at once, and a reader may take nothing for as long as it likes.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from .errors import Busy

MEDIUM, LARGE = 64 * 1024, 1024 * 1024
"""Bytes from which on an answer needs room, among others of its size."""
MEDIUM_AT_ONCE, AT_ONCE = 32, 4
WAIT_SECONDS = 30.0
SEND_SECONDS = 60.0
MAX_STALLED = 8


class Answers:
    """Lets a few large answers be sent at once, however many readers ask and then stall.

    Readers who take nothing for long lose their room to those who wait, and keep their stream: gRPC
    cannot end it from here without leaving them to wait for ever. So a few are let be, no more.
    """

    def __init__(
        self,
        at_once: int = AT_ONCE,
        seconds: float = WAIT_SECONDS,
        send_seconds: float = SEND_SECONDS,
        stalled: int = MAX_STALLED,
    ) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._seconds = seconds
        self._send_seconds = send_seconds
        self._most_stalled = stalled
        self._stalled = 0
        self._sending: dict[object, float] = {}
        """Since when each has room, the oldest first."""

    @contextlib.asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """For as long as one is made and sent; raises Busy when there is none in time."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._room.acquire()
        except TimeoutError:
            self._pass_over()
            why = "large answers wait for their readers"
            raise Busy("TOO_MANY_CALLS", why, 1.0, "large-answers") from None
        answer = object()
        self._sending[answer] = time.monotonic()
        try:
            yield
        finally:
            if self._sending.pop(answer, None) is None:
                self._stalled -= 1
            else:
                self._room.release()

    async def hold(self, context: Any) -> None:
        """Have room until a call is done: the caller has the answer, or is gone. Raises Busy."""
        async with contextlib.AsyncExitStack() as room:
            await room.enter_async_context(self.room())
            # It is left after the call's handler has ended.
            left = room.pop_all()
            context.add_done_callback(lambda _: asyncio.ensure_future(left.aclose()))

    def _pass_over(self) -> None:
        """Make room where readers have stalled for long."""
        for answer, since in list(self._sending.items()):
            long = time.monotonic() - since >= self._send_seconds
            if long and self._stalled < self._most_stalled:
                del self._sending[answer]
                self._stalled += 1
                self._room.release()
