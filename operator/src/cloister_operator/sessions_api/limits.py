"""How often each caller may call: token buckets, one for making sessions and one for the rest.

A caller is whoever has a share of the places, too: the ServiceAccounts of a namespace are one.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..settings import Settings
from .status import Busy

MAX_CALLERS: Final = 4096
"""Callers whose buckets are remembered. Who called longest ago is forgotten first, and begins with
full buckets again: by then they are full anyway, unless that many call within a burst's time.
"""
_MAKING: Final = frozenset({"Create", "Resume"})
"""What costs a pod."""


@dataclass(frozen=True)
class Rate:
    """So many calls a second in the long run, and so many at once after a rest."""

    per_second: float
    """0: as many as one likes."""
    burst: int = 1


class RateLimits:
    """The buckets of one process."""

    def __init__(
        self,
        create: Rate,
        other: Rate,
        clock: Callable[[], float] = time.monotonic,
        max_callers: int = MAX_CALLERS,
    ) -> None:
        """`clock`: monotonic seconds."""
        self._rates = {True: create, False: other}
        self._clock = clock
        self._max_callers = max_callers
        self._full_at: OrderedDict[tuple[str, bool], float] = OrderedDict()
        """When each bucket is full again: that says all about it."""

    def take(self, caller: str, method: str) -> None:
        """Count a call; raises Busy, with the seconds to wait, when there are too many of them.

        A refused call costs nothing, so that waiting as told is enough.
        """
        making = method in _MAKING
        rate = self._rates[making]
        if rate.per_second <= 0:
            return
        key, now = (caller, making), self._clock()
        full_at = max(now, self._full_at.pop(key, now)) + 1 / rate.per_second
        wait = full_at - now - max(1, rate.burst) / rate.per_second
        # Sums of many fractions are not exact.
        if wait > 1e-6:
            self._full_at[key] = full_at - 1 / rate.per_second
            what = "creations of sessions" if making else "calls"
            raise Busy(
                "RATE_LIMITED",
                f"too many {what} of yours: at most {rate.per_second:g} a second, "
                f"{rate.burst} at once; try again in {wait:.3f} s",
                wait,
                limit="create" if making else "other",
            )
        self._full_at[key] = full_at
        if len(self._full_at) > 2 * self._max_callers:
            self._full_at.popitem(last=False)


def of_settings(settings: Settings) -> RateLimits:
    """The limits that the platform set."""
    return RateLimits(
        Rate(settings.create_rate, settings.create_burst),
        Rate(settings.call_rate, settings.call_burst),
    )
