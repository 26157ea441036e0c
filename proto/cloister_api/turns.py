"""Turns among those that do something at the same time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def turn(turns: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """One of `turns`; who is not done after `seconds` goes on, while the next one's begins.

    So who is held up holds up no other for longer.
    """
    await turns.acquire()
    returning = [turns.release]

    def give_back() -> None:
        if returning:
            returning.pop()()

    timer = asyncio.get_running_loop().call_later(seconds, give_back)
    try:
        yield
    finally:
        timer.cancel()
        give_back()
