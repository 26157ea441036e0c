"""Threads that start programs, and pass many results to the event loop at once.

Of a hundred programs that are to start at the same time each would otherwise wake a thread and the
loop once more. More than one thread, because the kernel may let one of them wait: a tool that holds
a lease on a program's file holds up its start for 45 s. While none of them gets on, there is one
more for each start that waits.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

_Order: TypeAlias = tuple[asyncio.Future[int], Callable[[], int]]
THREADS = 2
MOST = 512
"""Threads; more than there can be programs and shells that start."""
STALLED_SECONDS = 0.1
"""Without any start that got on; as a rule one takes a hundredth of that."""


class Starts:
    """Runs functions that return a pid. Used on one event loop."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._results: deque[tuple[asyncio.Future[int], int | Exception]] = deque()
        self._announced = False
        self._threads = 0
        self._lock = threading.Lock()
        """Held while the number of threads changes."""
        self._busy = 0
        self._got_on = 0.0
        """When a start was last taken up or done."""
        self._look: asyncio.TimerHandle | None = None

    async def run(self, start: Callable[[], int]) -> int:
        """What the function returns or raises, from a thread.

        Raises RuntimeError where not even the first thread can be started.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._busy += 1
        try:
            if self._threads < min(self._busy, THREADS):
                self._add_thread(loop)
            elif self._look is None and self._busy > self._threads:
                self._look = loop.call_later(STALLED_SECONDS, self._help, loop)
            self._orders.put((future, start))
            return await future
        finally:
            self._busy -= 1

    def _help(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a thread for each start that waits, unless others got on meanwhile."""
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
            threading.Thread(target=self._work, args=[loop], name="starts", daemon=True).start()
        except RuntimeError:
            # There are too many processes. The threads that there are go on.
            with self._lock:
                self._threads -= 1
                if self._threads:
                    return
            raise

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (order := self._next()) is not None:
            future, start = order
            self._got_on = time.monotonic()
            try:
                result: int | Exception = start()
            except Exception as error:
                result = error
            self._got_on = time.monotonic()
            self._results.append((future, result))
            if not self._announced:
                self._announced = True
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._deliver)

    def _next(self) -> _Order | None:
        """What a thread does next; None for one that is no longer needed."""
        with contextlib.suppress(queue.Empty):
            return self._orders.get_nowait()
        with self._lock:
            if self._threads > THREADS:
                self._threads -= 1
                return None
        return self._orders.get()

    def _deliver(self) -> None:
        # Before the look: what is added from here on is announced again.
        self._announced = False
        while self._results:
            future, result = self._results.popleft()
            if future.done():
                continue
            if isinstance(result, int):
                future.set_result(result)
            else:
                future.set_exception(result)
