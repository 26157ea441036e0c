"""Futures that say that something happened, and no more."""

import asyncio


def wake(waiter: "asyncio.Future[None]") -> None:
    """Tell who waits; once is enough."""
    if not waiter.done():
        waiter.set_result(None)


async def woken(waiter: "asyncio.Future[None]", seconds: float) -> None:
    """Wait until somebody wakes it, at most so long; then it counts as woken too.

    Less than half the work of asyncio.wait, and a turn of the loop less.
    """
    timer = asyncio.get_running_loop().call_later(seconds, wake, waiter)
    try:
        await waiter
    finally:
        timer.cancel()
