"""Threads that look through all processes, and do nothing else.

What waits for a disk must not keep others from ending what is to end. And who looks at a process
that ends meanwhile may be the last who holds its memory: what that was mapped from is closed by the
thread then, which lasts as long as a tool likes, for a connection that lingers, say.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from .threads import Threads

T = TypeVar("T")
HELD_UP_SECONDS = 2.0
"""For so long a look waits for a thread. Then there are as many again: few, because each that works
takes time from the event loop.
"""
_THREADS = 4


class Looks:
    """Those of one process."""

    def __init__(self) -> None:
        self._pool = self._threads()

    def _threads(self) -> Threads:
        return Threads(_THREADS, thread_name_prefix="looks")

    async def run(self, work: Callable[[], T]) -> T:
        """What the function returns or raises, from a thread.

        Where not even one can be started it is done at once: to end processes is what helps.
        """
        while True:
            pool = self._pool
            try:
                looking = pool.submit(work)
            except RuntimeError:
                return work()
            found = asyncio.wrap_future(looking)
            try:
                await asyncio.wait([found], timeout=HELD_UP_SECONDS)
                if found.done() or not looking.cancel():
                    return await found
            except asyncio.CancelledError:
                found.cancel()
                raise
            if self._pool is pool:
                self._pool = self._threads()


in_thread = Looks().run
"""See `Looks.run`."""
