"""Waiting for what the event loop brings about."""

import asyncio
from collections.abc import Callable


async def until(what: Callable[[], object], seconds: float = 30, pause: float = 0.0) -> None:
    """Let the event loop work until `what()` is true; fails after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not what():  # noqa: ASYNC110 - whatever the loop does next may make it true
                await asyncio.sleep(pause)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None
