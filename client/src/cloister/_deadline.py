"""Time that a caller grants, kept by this machine's clock whatever a server says."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import grpc

from ._errors import CallError, call_error
from ._numbers import some

T = TypeVar("T")

GRACE_SECONDS = 30.0
"""What a call with a time of its own gets beyond it: a server stops what it runs in 7 s, and a
connection that broke meanwhile is repaired in the rest."""
LEFTOVER_SECONDS = 30.0
"""For which output that is kept may be waited for in all, besides the time that its bytes take,
also while a connection is made again."""
SLOWEST = 16 * 1024
"""Bytes of it that come in a second at least."""
IN_FLIGHT = 16 * 1024 * 1024
"""Bytes that may be on their way besides those that are kept."""
_until: ContextVar[float | None] = ContextVar("cloister_deadline", default=None)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Bound what this thread does with Client, Session, Process, Command and Shell in the block.

    After so many seconds by this machine's clock, whatever a sandbox says, the call under way is
    given up, and it and each one after it raise DeadlineExceededError. What it began in the sandbox
    is stopped as after an interrupt, for which there are 5 s. Leaving the contexts of sessions,
    programs and shells is not bounded by it. Of blocks within each other the earliest end counts.

    On an event loop use asyncio.timeout.
    """
    given = time.monotonic() + some("seconds", seconds)
    outer = _until.get()
    token = _until.set(given if outer is None else min(given, outer))
    try:
        yield
    finally:
        _until.reset(token)


def left() -> float | None:
    """Seconds until the end of this thread's `deadline`; None without one."""
    until = _until.get()
    return None if until is None else until - time.monotonic()


@dataclass
class Ending:
    """When something that a server bounds must have ended, and what may come after it.

    What was printed until then, and is kept, may be read at any time later. It comes when it is
    asked for: waiting for it has a bound, and so has its length.
    """

    at: float
    """On the monotonic clock."""
    kept: int
    """Bytes that a server keeps at most."""

    def is_over(self) -> bool:
        """Whether it must have ended."""
        return time.monotonic() > self.at


class Leftover:
    """What one reader gets after the ending: counted, so that it has an end too."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._waited = 0.0
        self._came = 0

    def came(self, size: int, asked: float) -> bool:
        """Whether so many bytes, asked for at a time on the monotonic clock, were still due."""
        now = time.monotonic()
        if now <= self._ending.at:
            return True
        self._waited += now - max(asked, self._ending.at)
        self._came += size
        in_time = self._waited <= LEFTOVER_SECONDS + self._came / SLOWEST
        return in_time and self._came <= self._ending.kept + IN_FLIGHT


async def within(seconds: float | None, what: str, work: Awaitable[T]) -> T:
    """Await what a server bounds by so many seconds, and this machine by GRACE_SECONDS more.

    None and 0 are no bound, as in the messages.
    """
    if not seconds:
        return await work
    try:
        async with asyncio.timeout(seconds + GRACE_SECONDS) as timeout:
            return await work
    except TimeoutError:
        if not timeout.expired():
            raise
    raise exceeded(f"{what} did not end within its {seconds:g} s")


def end_of(seconds: float | None, kept: int) -> Ending | None:
    """When something that a server bounds by so many seconds from now must have ended.

    None and 0 are no bound, as in the messages. kept: bytes of its output that the server keeps.
    """
    return Ending(time.monotonic() + seconds + GRACE_SECONDS, kept) if seconds else None


def exceeded(why: str) -> CallError:
    """The error for time that is used up."""
    return call_error(grpc.StatusCode.DEADLINE_EXCEEDED, why)
