"""Keys that wait, in lanes that take turns: a long lane does not keep a short one waiting."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
C = TypeVar("C", bound=Hashable)
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
        self._spaces: Counter[Hashable] = Counter()
        """Lanes of each namespace that have such keys."""
        self._running_in: Counter[Hashable] = Counter()
        """Keys that run, by namespace."""

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
        if not self._present[lane]:
            self._spaces[lane[0]] += 1
        self._present[lane] += 1

    def take(self, at_once: int) -> tuple[K, float] | None:
        """The next key whose turn it is, and since when it waits; it counts as running until
        `done`. None when all that wait have their share of `at_once`.

        A lane's share is what each gets when one more comes along beside the lanes of its namespace
        and the other namespaces: a newcomer does not wait for one that is slow, and however many
        lanes somebody makes, those of others keep theirs. A namespace that has its own share gets
        more only while a quarter of `at_once` is free: that is for those that have not.
        """
        spaces = len(self._spaces)
        plenty = self._running_in.total() < at_once - at_once // 4
        for namespace, space in self._waiting.items():
            fair = self._running_in[namespace] < max(1, at_once // (spaces + 1))
            if not fair and not plenty:
                continue
            share = max(1, at_once // (self._spaces[namespace] + spaces))
            lane = next((each for each in space if self._running[each] < share), None)
            if lane is not None:
                return self._take(namespace, lane)
        return None

    def done(self, key: K) -> None:
        """It does not run any more."""
        lane = self._lane_of.pop(key)
        _less(self._running, lane)
        _less(self._running_in, lane[0])
        _less(self._present, lane)
        if not self._present[lane]:
            _less(self._spaces, lane[0])

    def _take(self, namespace: Hashable, lane: Lane) -> tuple[K, float]:
        key, _ = self._waiting[namespace][lane].popitem(last=False)
        self._turn(namespace, lane)
        self._running[lane] += 1
        self._running_in[namespace] += 1
        self._lane_of[key] = lane
        return key, self._since.pop(key)

    def _turn(self, namespace: Hashable, lane: Lane) -> None:
        space = self._waiting[namespace]
        space.move_to_end(lane)
        if not space[lane]:
            del space[lane]
        self._waiting.move_to_end(namespace)
        if not space:
            del self._waiting[namespace]


def _less(counter: Counter[C], key: C) -> None:
    """One less; what is at zero is not kept."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
