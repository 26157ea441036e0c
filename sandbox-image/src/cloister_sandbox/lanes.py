"""Threads for file I/O, in lanes: what is slow in one never holds up the others.

quick: small calls. bulk: pieces of transfers, so that many transfers share it fairly. slow: work
that keeps a thread for long, such as searching a tree. watch: following changes, where tools decide
how much there is to do, and how often.
"""

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from .errors import Busy
from .threads import Threads

P = ParamSpec("P")
T = TypeVar("T")
MAX_WAITING = 32


class Lane:
    """A few threads, and at most MAX_WAITING pieces of work behind each of them."""

    def __init__(self, name: str, threads: int) -> None:
        self._pool = Threads(threads, thread_name_prefix=name)
        self._bound = threads * MAX_WAITING
        self._under_way = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread of the lane; raises Busy when too much is waiting."""
        return await self.submit(functools.partial(function, *args, **kwargs))

    async def open(self, function: Callable[[], T], close: Callable[[T], object]) -> T:
        """Run a function that opens something; it is closed again if the caller goes away."""
        future = self.submit(function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(functools.partial(_close_unused, close))
            raise

    def submit(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Start a piece of work; raises Busy when too much is waiting, RuntimeError where not even
        the lane's first thread can be started.
        """
        if self._under_way >= self._bound:
            why = "too many file operations are waiting"
            raise Busy("TOO_MANY_CALLS", why, 1.0, "file-operations", self._bound)
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._under_way += 1
        future.add_done_callback(self._done)
        return future

    async def give_back(self, function: Callable[[], object]) -> None:
        """Run what lets something go. It is refused to nobody: there is no more of it than what was
        taken within the bound, and nobody else would do it.
        """
        try:
            going = asyncio.get_running_loop().run_in_executor(self._pool, function)
        except RuntimeError:  # not even the lane's first thread can be started
            function()
        else:
            await going

    def _done(self, _: "asyncio.Future[T]") -> None:
        self._under_way -= 1

    async def batches(self, source: Iterator[T | None], size: int) -> AsyncGenerator[list[T], None]:
        """What a generator yields, in lists; the next list is made while this one is used.

        A None that the generator yields ends a list early, so that what is there is seen at once.
        The generator is closed in the lane when its reader goes away.
        """
        following = self.submit(lambda: _take(source, size))
        try:
            while True:
                batch, ended = await asyncio.shield(following)
                if not ended:
                    following = self.submit(lambda: _take(source, size))
                if batch:
                    yield batch
                if ended:
                    return
        finally:
            await asyncio.shield(self._close(source, following))

    async def _close(self, source: Iterator[T | None], last: "asyncio.Future[Any]") -> None:
        with contextlib.suppress(Exception):
            await last  # a generator that runs cannot be closed
        close = getattr(source, "close", None)
        if close is not None:
            await self.give_back(close)


def _close_unused(close: Callable[[T], object], future: "asyncio.Future[T]") -> None:
    if not future.cancelled() and future.exception() is None:
        close(future.result())


def _take(source: Iterator[T | None], size: int) -> tuple[list[T], bool]:
    """Up to `size` items, and whether the source is at its end."""
    batch: list[T] = []
    for each in itertools.islice(source, size):
        if each is None:
            return batch, False
        batch.append(each)
    return batch, len(batch) < size


class Lanes:
    """The lanes of one server."""

    def __init__(self) -> None:
        self.quick = Lane("quick", 4)
        self.bulk = Lane("bulk", 4)
        self.slow = Lane("slow", 4)
        self.watch = Lane("watch", 2)
        self.search = Lane("search", 8)
        """What starts ripgrep, which tools can stop before it runs: it holds up searches alone."""
