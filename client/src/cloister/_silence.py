"""Telling that a connection is lost when nobody says so."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from typing import TypeVar

# A call that says nothing for so long has lost its connection: the server reports every 5 s.
SILENCE_SECONDS = 20.0

T = TypeVar("T")


class Lost(Exception):
    """The connection died without a word, or a stream ended without its last message."""


async def watched(
    stream: AsyncIterable[T], silence: float | None = None
) -> AsyncGenerator[T, None]:
    """The messages of a call; raises Lost when none comes for so many seconds.

    silence: None is SILENCE_SECONDS.
    """
    messages = aiter(stream)
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS if silence is None else silence):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Lost("the exec server fell silent") from None
        yield message
