"""The event loop behind the blocking half of the library.

All clients of a process share one event loop in a daemon thread: gRPC's asyncio half is at its best
with a single loop.
"""

import asyncio
import atexit
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from ._deadline import exceeded, left
from ._errors import CallError

T = TypeVar("T")

# How long an interrupted call may take to end in order, in seconds.
_INTERRUPT_SECONDS = 5.0


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cloister", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float | None) -> T:
        """Run a coroutine there and wait for it; an interrupt cancels it and lets it end.

        seconds: for which to wait; then it ends as after an interrupt, and DeadlineExceededError is
        raised.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("Client and Session block: use AsyncClient on an event loop")
        done = threading.Event()

        async def wrapped() -> T:
            try:
                return await work()
            finally:
                done.set()

        future = asyncio.run_coroutine_threadsafe(wrapped(), self._loop)
        try:
            return future.result(seconds)
        except BaseException as error:
            # Without effect on a call that failed by itself; an interrupt must stop it.
            if future.cancel():
                done.wait(_INTERRUPT_SECONDS)
                if isinstance(error, TimeoutError):
                    raise _too_late() from None
            elif isinstance(error, TimeoutError):
                return future.result()  # it has ended after all
            raise

    def _stop(self) -> None:
        ending = asyncio.run_coroutine_threadsafe(_end_all(), self._loop)
        with contextlib.suppress(TimeoutError):
            ending.result(_INTERRUPT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_INTERRUPT_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


async def _end_all() -> None:
    """End what still runs, as asyncio.run does: a task that is destroyed complains on stderr."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)


_lock = threading.Lock()
_shared: _Loop | None = None


def run(work: Callable[[], Coroutine[Any, Any, T]], *, ending: bool = False) -> T:
    """Run a coroutine on the shared loop and wait for it, within this thread's `deadline`.

    ending: it ends what a block began, which the deadline must not prevent.
    """
    global _shared
    seconds = None if ending else left()
    if seconds is not None and seconds <= 0:
        raise _too_late()
    with _lock:
        if _shared is None:
            _shared = _Loop()
    return _shared.run(work, seconds)


def step(items: AsyncIterator[T]) -> T | None:
    """The next item, as `run` gets it; None at the end."""

    async def following() -> T | None:
        # A coroutine cannot pass on that an iteration has ended.
        return await anext(items, None)

    return run(following)


def _too_late() -> CallError:
    return exceeded("the deadline of this block is over")
