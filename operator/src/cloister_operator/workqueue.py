"""Work by key: asked for any number of times, done once, one at a time per key."""

import asyncio
import contextlib
import heapq
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from cloister_api.cancelling import being_cancelled

from .errors import NotFoundError, OperatorError, TransientError
from .metrics import QUEUE_WAIT_SECONDS
from .plan.lanes import Lane, Lanes

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
FIRST_BACKOFF = 0.02
LONGEST_BACKOFF = 30.0
_DOUBLINGS = 20
"""More than lead to the longest: a key may fail for days, and no float holds that power of two."""
_FEW = 1000


class WorkQueue(Generic[K]):
    """Runs a handler for each key that was added.

    A key added while it is handled is handled again afterwards. The handler's answer is the delay
    in seconds after which the key is added again, or None. A TransientError is repeated with
    backoff that grows per key, in the time the other side asked for if it did, and not before that
    for anything that happens; any other exception likewise, and is logged with its traceback.
    """

    def __init__(
        self,
        handler: Callable[[K], Awaitable[float | None]],
        at_once: int = 64,
        lane: Callable[[K], Lane] = lambda key: ("", key),
    ) -> None:
        """`at_once`: keys handled at a time; `lane`: in which a key stands, lanes take turns."""
        self._handler = handler
        self._at_once = at_once
        self._ready: Lanes[K] = Lanes(lane)
        self._running: dict[K, asyncio.Task[None]] = {}
        self._again: set[K] = set()
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        """By key, the time that the other side asked for: what is overloaded tells of many changes,
        each of which would ask it again."""
        self._count = itertools.count()
        self._wake = asyncio.Event()
        self.runs = False
        """Whether keys are being handled: who does not lead only gathers them."""
        self.progress = 0
        """Grows with each key handled."""

    def __len__(self) -> int:
        """Keys that wait to be handled now."""
        return len(self._ready)

    def age(self) -> float:
        """Seconds for which the key has waited that waits longest now; 0 without one."""
        oldest = min(self._ready.times(), default=None)
        return 0.0 if oldest is None else asyncio.get_running_loop().time() - oldest

    def add(self, key: K) -> None:
        """Handle the key as soon as possible."""
        now = asyncio.get_running_loop().time()
        if (asked := self._not_before.get(key, now)) > now:
            self._plan(key, asked)
            return
        self._not_before.pop(key, None)
        self._due.pop(key, None)
        if key in self._running:
            self._again.add(key)
        elif key not in self._ready:
            self._ready.add(key, now)
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Handle the key in a while; the earliest of several times counts."""
        self._plan(key, asyncio.get_running_loop().time() + seconds)

    def _plan(self, key: K, due: float) -> None:
        if self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._later, (due, next(self._count), key))
        if len(self._later) > _FEW + 2 * len(self._due):
            # Of keys that were added before their time. What is due in months would stay as long.
            self._later = [each for each in self._later if self._due.get(each[2]) == each[0]]
            heapq.heapify(self._later)
        self._wake.set()

    async def finish(self, seconds: float) -> None:
        """Handle no more keys, and wait for those that are being handled, at most so long."""
        self._at_once = 0
        if running := list(self._running.values()):
            await asyncio.wait(running, timeout=seconds)

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        self.runs = True
        try:
            while True:
                while self._later and self._later[0][0] <= loop.time():
                    due, _, key = heapq.heappop(self._later)
                    if self._due.get(key) == due:
                        self.add(key)
                while len(self._running) < self._at_once:
                    taken = self._ready.take(self._at_once)
                    if taken is None:
                        break
                    key, since = taken
                    QUEUE_WAIT_SECONDS.observe(loop.time() - since)
                    self._running[key] = asyncio.create_task(self._work(key))
                self._wake.clear()
                pause = self._later[0][0] - loop.time() if self._later else None
                # Not wait_for: it swallows a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
        finally:
            self.runs = False
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, key: K) -> None:
        delay: float | None
        try:
            delay = await self._handler(key)
            self._failures.pop(key, None)
        except TransientError as error:
            if error.retry_after:
                delay = min(error.retry_after, LONGEST_BACKOFF)
                self._not_before[key] = asyncio.get_running_loop().time() + delay
            else:
                delay = self._backoff(key)
            log.info("%s: again in %.2f s: %s", key, delay, error)
        except NotFoundError as error:
            delay = self._backoff(key)
            log.info("%s: again in %.2f s: %s", key, delay, error)
        except OperatorError as error:
            delay = self._backoff(key)
            log.warning("%s: again in %.2f s: %s", key, delay, error)
        except (Exception, asyncio.CancelledError):
            if being_cancelled():
                raise
            # Also what the handler waited for being cancelled: a key that stays among those that
            # are handled would never be handled again.
            delay = self._backoff(key)
            log.exception("%s: again in %.2f s", key, delay)
        self.progress += 1
        del self._running[key]
        self._ready.done(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        elif delay is not None:
            self.add_after(key, delay)
        self._wake.set()

    def _backoff(self, key: K) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        longest: float = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, _DOUBLINGS))
        # Half of it at random: keys that failed together do not come back together.
        return longest * random.uniform(0.5, 1)  # noqa: S311
