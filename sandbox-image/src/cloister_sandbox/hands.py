"""Threads for what the kernel may hold up, which pass many results to the event loop at once.

Such as to start a program: a tool that holds a lease on its file holds up its start for 45 s. Or to
read from a pipe: see inlet. Of a hundred programs that are to start at the same time each would
otherwise wake a thread and the loop once more. While none of the threads gets on, there is one more
for each piece of work that waits.
"""

import asyncio
import contextlib
import functools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
_Order: TypeAlias = tuple[
    Callable[[], Any], Callable[[Any], None] | None, Callable[[], object] | None
]
THREADS = 2
MOST = 1024
"""Threads; more than there can be programs and shells that start, or pipes of them."""
STALLED_SECONDS = 0.1
"""Without anything that got on; as a rule a start takes a hundredth of that."""
WARY_SECONDS = 0.25
"""After which what was done at once took too long: a few hundred thousandths are usual."""
LEAVE_SECONDS = 0.02
"""Before what is let go is closed: nobody waits for it, and more may come."""
_CLOSERS = 16
"""Threads that go on with what is to be closed, where one was held up."""


class Hands:
    """Threads of one event loop, which nothing else is done by."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._results: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._announced = False
        self._threads = 0
        self._lock = threading.Lock()
        """Held while one of the two numbers changes."""
        self._busy = 0
        """Pieces of work that are not done."""
        self._got_on = 0.0
        """When a piece of work was last taken up or done."""
        self._look: asyncio.TimerHandle | None = None
        self._left: deque[int] = deque()
        """Descriptors to close."""
        self._leaving: asyncio.TimerHandle | None = None
        self.wary = False
        """Whether something was held up that the event loop did itself."""

    async def run(self, work: Callable[[], T], after: Callable[[], object] | None = None) -> T:
        """What the function returns or raises, from a thread; see `hand_in`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.hand_in(work, functools.partial(_settle, future), after)
        return await future

    def timed(self, work: Callable[[], T]) -> T:
        """What the function returns or raises, at once: for what is quicker than to hand it in.

        Not to be used when this is wary.
        """
        began = time.monotonic()
        try:
            return work()
        finally:
            self.wary = self.wary or time.monotonic() - began > WARY_SECONDS

    def hand_in(
        self,
        work: Callable[[], T],
        then: Callable[[T | Exception], None] | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        """Run a function in a thread; `then` is called on the event loop, with its result.

        `after` is called by the thread in any case, and keeps the result from nobody. Raises
        RuntimeError where not even the first thread can be started.
        """
        loop = asyncio.get_running_loop()
        if self._threads < min(self._busy + 1, THREADS):
            try:
                self._add_thread(loop)
            except RuntimeError:
                if after is not None:
                    after()
                raise
        # Also where there is no room for one more thread: those that there are may be held up.
        if self._look is None and self._busy >= self._threads:
            self._look = loop.call_later(STALLED_SECONDS, self._help, loop)
        with self._lock:
            self._busy += 1
        self._orders.put((work, then, after))

    def let_go(self, fd: int) -> None:
        """Close a descriptor soon, which the kernel may hold up too.

        Not for what somebody waits for, such as the end of an input.
        """
        self._left.append(fd)
        if self._leaving is None:
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(LEAVE_SECONDS, self._leave)

    def _leave(self, most: int = 1) -> None:
        self._leaving = None
        for _ in range(min(len(self._left), most)):
            self.hand_in(self._close_all)
        if self._left:
            # Who closes them may be held up by the first one.
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(STALLED_SECONDS, self._leave, _CLOSERS)

    def _close_all(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                fd = self._left.popleft()
                with contextlib.suppress(OSError):
                    os.close(fd)
                self._got_on = time.monotonic()

    def _help(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a thread for each piece of work that waits, unless others got on meanwhile."""
        self._look = None
        waiting = self._orders.qsize()
        if not waiting:
            return
        left = self._got_on + STALLED_SECONDS - time.monotonic()
        if left <= 0:
            for _ in range(min(waiting, MOST - self._threads)):
                self._add_thread(loop)
        self._look = loop.call_later(left if left > 0 else STALLED_SECONDS, self._help, loop)

    def _add_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._threads += 1
        try:
            threading.Thread(target=self._work, args=[loop], name=self._name, daemon=True).start()
        except RuntimeError:
            # There are too many processes. The threads that there are go on.
            with self._lock:
                self._threads -= 1
                if self._threads:
                    return
            raise

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (order := self._next()) is not None:
            work, then, after = order
            self._got_on = time.monotonic()
            try:
                result = work()
            except Exception as error:
                result = error
            self._got_on = time.monotonic()
            if after is None:
                self._done()
            if then is not None:
                self._results.append((then, result))
            if self._results and not self._announced:
                self._announced = True
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._deliver)
            if after is not None:
                with contextlib.suppress(OSError):
                    after()
                self._done()

    def _done(self) -> None:
        with self._lock:
            self._busy -= 1

    def _next(self) -> _Order | None:
        """What a thread does next; None for one that is no longer needed."""
        with contextlib.suppress(queue.Empty):
            return self._orders.get_nowait()
        with self._lock:
            # As many stay as are usual, besides those that are held up. So there is one, too, for
            # what is handed in at this moment by who counts on this thread.
            if self._threads - self._busy > THREADS:
                self._threads -= 1
                return None
        return self._orders.get()

    def _deliver(self) -> None:
        # Before the look: what is added from here on is announced again.
        self._announced = False
        try:
            # No more than there are now: what one of them begins may be done before they are.
            for _ in range(len(self._results)):
                then, result = self._results.popleft()
                then(result)
        finally:
            if self._results:  # those, or one of them failed, which is told by the loop
                asyncio.get_running_loop().call_soon(self._deliver)


def _settle(future: "asyncio.Future[T]", result: T | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
