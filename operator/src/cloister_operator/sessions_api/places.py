"""Places of the Sessions API: how many of its calls are under way, and of whom."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from .status import Busy

KEPT: Final = 16
"""One of so many places of a kind is kept for those who have none of it."""


def may_have(mine: int, free: int, most: int) -> bool:
    """Whether one more of `most` places is for who has `mine`, when so many are free.

    Nobody has more than are left for all others. So whoever comes first gets half, those who come
    next half of what is left, and whose calls end and begin come to like parts. The last places
    are for those who have none, however many others there are.
    """
    if not mine:
        return free > 0
    return mine < free and free > most // KEPT


class Places:
    """The places of one process, by kind. A caller is whoever has a share; see `whose_share`."""

    def __init__(self, most: Mapping[str, int]) -> None:
        """`most`: how many there are of each kind."""
        self._most = dict(most)
        self._free = dict(most)
        self._taken: Counter[tuple[str, str]] = Counter()

    @contextlib.contextmanager
    def one(self, kind: str) -> Iterator[None]:
        """A place for a call of which nobody knows yet whose it is; raises Busy."""
        if self._free[kind] <= 0:
            raise Busy("TOO_MANY_CALLS", f"too many {kind} at the same time; try again")
        self._free[kind] -= 1
        try:
            yield
        finally:
            self._free[kind] += 1

    @contextlib.contextmanager
    def of(self, caller: str, kind: str) -> Iterator[None]:
        """Make the place that `one` gave the caller's; raises Busy when they have their share."""
        key = caller, kind
        # Its own is taken already.
        if not may_have(self._taken[key], self._free[kind] + 1, self._most[kind]):
            raise Busy("TOO_MANY_CALLS", f"too many {kind} of yours at the same time; try again")
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
