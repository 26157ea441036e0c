"""How many pods a pool needs to have warm, by how fast they were claimed of late."""

import math
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

WINDOWS = (timedelta(seconds=10), timedelta(seconds=60))
"""The rate is the highest of these: a burst counts at once, and is remembered for a while."""
FIRST_GUESS = timedelta(seconds=10)
"""From a pod's creation to its being warm, before one was seen."""
SHRINK_AFTER = timedelta(minutes=2)
"""A pool keeps what it grew to for so long after it was last needed."""
SHRINK_EVERY = timedelta(seconds=20)
"""Then an eighth of it goes, and the next after this."""
_MOST_CLAIMS = 10_000
"""Remembered of one Environment: enough for the fastest pool's longest window."""
_WEIGHT = 0.2
"""Of the newest pod in what a pod takes to be warm."""


class Demand:
    """Claims and starts of one Environment's pods; a restart begins with none of them."""

    def __init__(self) -> None:
        self._claims: deque[datetime] = deque(maxlen=_MOST_CLAIMS)
        self._takes = FIRST_GUESS

    def claimed(self, now: datetime) -> None:
        """A session got a pod, warm or made for it."""
        self._claims.append(now)
        # Who does not lead asks for no rate.
        self._forget(now)

    def warmed(self, took: timedelta) -> None:
        """A pod took so long from its creation to being warm."""
        took = min(max(took, timedelta(seconds=1)), timedelta(minutes=15))
        self._takes += _WEIGHT * (took - self._takes)

    def rate(self, now: datetime) -> float:
        """Claims a second. One claim alone is no rate."""
        self._forget(now)
        found = 0.0
        for window in WINDOWS:
            recent = sum(1 for each in self._claims if now - window < each <= now)
            found = max(found, (recent - 1) / window.total_seconds())
        return found

    def _forget(self, now: datetime) -> None:
        """Drop claims of before the longest window."""
        while self._claims and self._claims[0] <= now - WINDOWS[-1]:
            self._claims.popleft()

    def needed(self, now: datetime) -> int:
        """Pods that have to be warm so that claims at the present rate find one while the next
        are on their way.

        Claims that come independently of each other vary by the root of their number; twice that
        is enough for nearly all of the time.
        """
        during = self.rate(now) * self._takes.total_seconds()
        return math.ceil(during + 2 * math.sqrt(during))


@dataclass(frozen=True)
class Bounds:
    """What the Environment and the platform allow a pool."""

    floor: int
    ceiling: int
    """At least the floor."""


@dataclass(frozen=True)
class Target:
    """How many pods a pool is to have, and since when it could do with fewer."""

    size: int
    since: datetime


def bounds(size: int, grows_to: int | None, platform: int, places: int | None) -> Bounds:
    """What a pool may be: `size` and `grows_to` (None: it never grows) as the Environment has them,
    `platform` as the platform allows at most, `places` sessions that may still come (None: any).
    """
    floor = min(size, platform)
    ceiling = min(floor if grows_to is None else grows_to, platform)
    if places is not None:
        ceiling = min(ceiling, places)
    return Bounds(floor, max(floor, ceiling))


def next_target(
    before: Target | None, needed: int, bounds: Bounds, present: int, now: datetime
) -> Target:
    """The target after a look at the demand: it grows at once and shrinks slowly.

    `present`: pods that the pool has, which is what an operator that has just started goes by.
    """

    def bounded(size: int) -> int:
        return min(max(size, bounds.floor), bounds.ceiling)

    if before is None:
        return Target(bounded(max(needed, present)), now)
    wanted, size = bounded(needed), bounded(before.size)
    if wanted >= size:
        return Target(wanted, now)
    # A clock that is set back keeps no pool large until it comes there again.
    since = min(before.since, now)
    if now < since + SHRINK_AFTER:
        return Target(size, since)
    smaller = max(wanted, size - max(1, size // 8))
    return Target(smaller, now - SHRINK_AFTER + SHRINK_EVERY)


def shrinks_at(target: Target, bounds: Bounds) -> datetime | None:
    """When to look whether the pool shrinks; None when it is as small as it may be."""
    return target.since + SHRINK_AFTER if target.size > bounds.floor else None
