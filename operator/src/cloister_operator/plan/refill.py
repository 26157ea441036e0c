"""How fast pools are filled: few pods at first, and never so many that claims have to wait."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator

_FORGOTTEN_AFTER = 60.0
"""Seconds: who does not ask again in this time stands in nobody's way."""


def slow_start(count: int, most: int) -> Iterator[int]:
    """`count` pods in batches of 1, 2, 4 ... and at most `most`: what is wrong with every pod is
    found out by the first one.
    """
    size = 1
    while count > 0:
        batch = min(size, most, count)
        yield batch
        count -= batch
        size *= 2


class Refill:
    """A token bucket, one token for each pod, that all pools share.

    Those that did not get enough stand in line, and what there is is shared out among them: a
    pool of a thousand does not keep one of two pods waiting. Times are in seconds of a clock that
    never goes back.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        """`rate`: pods a second; `burst`: pods at once after a rest, a second's unless given."""
        self._rate = rate
        self._burst = max(1.0, rate if burst is None else burst)
        self._tokens = self._burst
        self._filled_at = 0.0
        self._line: OrderedDict[Hashable, float] = OrderedDict()
        """Who waits for tokens, and when it last asked."""

    def take(self, who: Hashable, want: int, now: float) -> int:
        """How many of the pods that it wants somebody may make now."""
        self._fill(now)
        if want <= 0:
            self._line.pop(who, None)
            return 0
        self._line[who] = now
        each, rest = divmod(int(self._tokens), len(self._line))
        granted = min(want, each + (self._ahead_of(who) < rest))
        self._tokens -= granted
        if granted == want:
            del self._line[who]
        elif granted:
            self._line.move_to_end(who)
        return granted

    def wait(self, who: Hashable, now: float) -> float:
        """Seconds until somebody who stands in line may ask again with success."""
        self._fill(now)
        ahead = self._ahead_of(who)
        return max(0.01, (ahead + 1 - self._tokens) / self._rate)

    def _ahead_of(self, who: Hashable) -> int:
        for ahead, other in enumerate(self._line):
            if other == who:
                return ahead
        return len(self._line)

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._filled_at)
        self._tokens = min(self._burst, self._tokens + passed * self._rate)
        self._filled_at = max(now, self._filled_at)
        for who, asked in list(self._line.items()):
            if asked < now - _FORGOTTEN_AFTER:
                del self._line[who]
