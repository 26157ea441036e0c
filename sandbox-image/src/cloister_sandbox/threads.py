"""Pools of threads, in a process whose tools may leave no room for another thread."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Threads(ThreadPoolExecutor):
    """As many threads as are wanted; where no more can be started, those that there are do it all.

    Its base says that work failed and keeps it all the same: it would be done when a thread can be
    started again, after whoever was told has had it done otherwise. Here it is done or fails.
    """

    def _adjust_thread_count(self) -> None:
        """Called with the piece of work in the queue; raises RuntimeError for who hands it in."""
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                # There is nobody who could have taken it.
                self._work_queue.get_nowait()
                raise


async def prepare() -> None:
    """Have the event loop do by such threads what it does by threads, and start the first of them.

    It writes what does not fit into memory of what programs print, which wait for that.
    """
    asyncio.get_running_loop().set_default_executor(Threads(thread_name_prefix="rest"))
    await asyncio.to_thread(int)


_aside = Threads(1, thread_name_prefix="aside")


def aside(work: Callable[[], object]) -> "Future[object] | None":
    """Do later, in the order of the calls, what the event loop must not wait for, such as to remove
    a file: the kernel takes its time for that with one that a tool has made of a million pieces.

    Returns what is done when it is done; None where no thread can be started, and it was done at
    once. Who hands in much that holds descriptors until then has to wait for it.
    """
    try:
        return _aside.submit(work)
    except RuntimeError:
        with contextlib.suppress(OSError):
            work()
        return None
