"""Keys that wait, in lanes that take turns: a long lane does not keep a short one waiting."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Lane = tuple[Hashable, Hashable]
"""Namespace and Environment: namespaces take turns, and in each its Environments."""


class Lanes(Generic[K]):
    """Keys and since when each waits, first in first out within a lane."""

    def __init__(self, lane: Callable[[K], Lane]) -> None:
        self._lane = lane
        self._since: dict[K, float] = {}
        self._lane_of: dict[K, Lane] = {}
        """Of the keys that run."""
        self._waiting: OrderedDict[Hashable, OrderedDict[Lane, OrderedDict[K, None]]] = (
            OrderedDict()
        )
        self._running: Counter[Lane] = Counter()
        self._present: Counter[Lane] = Counter()
        """Keys that wait or run."""

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, key: object) -> bool:
        return key in self._since

    def times(self) -> Iterator[float]:
        """Since when each key waits."""
        return iter(self._since.values())

    def add(self, key: K, now: float) -> None:
        """A key that does not wait yet."""
        lane = self._lane(key)
        space = self._waiting.setdefault(lane[0], OrderedDict())
        space.setdefault(lane, OrderedDict())[key] = None
        self._since[key] = now
        self._present[lane] += 1

    def take(self, at_once: int) -> tuple[K, float] | None:
        """The next key whose turn it is, and since when it waits; it counts as running until
        `done`. None when all that wait are of lanes that have their share of `at_once`.

        A share is what each lane gets when one more than there are comes along: a newcomer never
        waits for one that is slow.
        """
        share = max(1, at_once // (len(self._present) + 1))
        for namespace, space in list(self._waiting.items()):
            for lane, keys in list(space.items()):
                if self._running[lane] >= share:
                    continue
                key, _ = keys.popitem(last=False)
                self._turn(namespace, lane)
                self._running[lane] += 1
                self._lane_of[key] = lane
                return key, self._since.pop(key)
        return None

    def done(self, key: K) -> None:
        """It does not run any more."""
        lane = self._lane_of.pop(key)
        for counted in (self._running, self._present):
            counted[lane] -= 1
            if not counted[lane]:
                del counted[lane]

    def _turn(self, namespace: Hashable, lane: Lane) -> None:
        space = self._waiting[namespace]
        space.move_to_end(lane)
        if not space[lane]:
            del space[lane]
        self._waiting.move_to_end(namespace)
        if not space:
            del self._waiting[namespace]
