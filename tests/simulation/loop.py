"""An asyncio event loop whose time is virtual and whose order of steps is drawn from a seed."""

import asyncio
import heapq
import random
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Deadlock(Exception):
    """Nothing is ready, and nothing is due at any time."""


class Runaway(Exception):
    """More callbacks than any schedule needs: something goes round in circles."""


MOST_CALLBACKS = 300_000


class SimulatedLoop(asyncio.BaseEventLoop):
    """Knows no files and no sockets; time passes only when nothing is ready.

    Of the tasks that could go on, `rng` chooses. Plain callbacks come before them and in their
    order, which asyncio promises and its own parts build on.
    """

    # BaseEventLoop's own, whose types are not published.
    _ready: Any
    _scheduled: Any

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._now = 0.0
        self._steps: list[asyncio.Handle] = []
        self.count = 0
        """Callbacks run."""
        self.ending = False
        """Whether what is left is only cleaned up."""

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def _run_once(self) -> None:
        ready, steps = self._ready, self._steps
        while ready:
            handle = ready.popleft()
            if isinstance(getattr(handle._callback, "__self__", None), asyncio.Task):
                steps.append(handle)
            else:
                self._call(handle)
                return
        if steps:
            which = int(self._rng.random() * len(steps))
            steps[which], steps[-1] = steps[-1], steps[which]
            self._call(steps.pop())
            return
        if self._stopping:  # type: ignore[attr-defined]
            return
        self._pass_time()

    def _call(self, handle: asyncio.Handle) -> None:
        if not handle.cancelled():
            self.count += 1
            if self.count > MOST_CALLBACKS and not self.ending:
                raise Runaway
            handle._run()

    def _pass_time(self) -> None:
        timers = self._scheduled
        while timers and timers[0].cancelled():
            heapq.heappop(timers)._scheduled = False
        if not timers:
            raise Deadlock
        self._now = max(self._now, timers[0].when())
        while timers and timers[0].when() <= self._now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            self._ready.append(timer)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        """Call it here and now: threads have an order of their own."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _write_to_self(self) -> None:
        """Nobody waits in a selector."""

    def _process_events(self, event_list: object) -> None:
        """There are none."""
