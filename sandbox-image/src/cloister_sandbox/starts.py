"""Threads that start programs, and pass many results to the event loop at once.

Of a hundred programs that are to start at the same time each would otherwise wake a thread and the
loop once more. More than one thread, because the kernel may let one of them wait.
"""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable

THREADS = 4


class Starts:
    """Runs functions that return a pid. Used on one event loop."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[asyncio.Future[int], Callable[[], int]]] = (
            queue.SimpleQueue()
        )
        self._results: deque[tuple[asyncio.Future[int], int | Exception]] = deque()
        self._announced = False
        self._threads = 0
        self._busy = 0

    async def run(self, start: Callable[[], int]) -> int:
        """What the function returns or raises, from a thread."""
        loop = asyncio.get_running_loop()
        self._busy += 1
        if self._threads < min(self._busy, THREADS):
            self._threads += 1
            threading.Thread(target=self._work, args=[loop], name="starts", daemon=True).start()
        future: asyncio.Future[int] = loop.create_future()
        self._orders.put((future, start))
        try:
            return await future
        finally:
            self._busy -= 1

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            future, start = self._orders.get()
            try:
                result: int | Exception = start()
            except Exception as error:
                result = error
            self._results.append((future, result))
            if not self._announced:
                self._announced = True
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._deliver)

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
