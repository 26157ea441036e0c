"""What was decided, second by second, for whoever follows it. Bounded; pure but for its callers."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from .reports import Key, Sum

MAX_HOSTS = 100
"""Hosts of one source in one second; the rest is summed up without a name."""
MAX_KEYS = 20_000
"""Sums of one second; the rest is counted as lost."""
MAX_KEPT = 50_000
"""Sums kept for who comes later."""
MAX_TOTALS = 100_000
"""Seconds of which is known how much was decided in them: for who comes even later."""


@dataclass(frozen=True)
class Page:
    """The decisions of one second."""

    cursor: int
    sums: Mapping[Key, Sum]
    lost: int
    decided: int
    """All decisions up to this page's end, those lost included."""


@dataclass
class Ledger:
    """Takes reports, and makes pages of them."""

    _open: dict[Key, Sum] = field(default_factory=dict)
    _hosts: dict[str, set[str]] = field(default_factory=dict)
    _lost: int = 0
    _pages: deque[Page] = field(default_factory=deque)
    _kept: int = 0
    _totals: deque[int] = field(default_factory=lambda: deque([0], MAX_TOTALS))
    """`decided` after each cursor, the newest last; the last one's cursor is `cursor`."""
    cursor: int = 0

    def add(self, key: Key, each: Sum) -> None:
        """Take one report."""
        hosts = self._hosts.setdefault(key.address, set())
        if key.host not in hosts:
            if len(hosts) >= MAX_HOSTS:
                key = Key(key.address, key.pod_uid, "", key.port, key.reason)
            else:
                hosts.add(key.host)
        held = self._open.get(key)
        if held is not None:
            held.add(each)
        elif len(self._open) < MAX_KEYS:
            self._open[key] = each
        else:
            self._lost += each.count

    def lose(self, count: int) -> None:
        """Take that decisions were lost before they came here."""
        self._lost += count

    def turn(self) -> bool:
        """End the page; False when there is nothing on it. Called about once a second."""
        if not self._open and not self._lost:
            self._hosts.clear()
            return False
        decided = self._totals[-1] + self._lost + sum(each.count for each in self._open.values())
        self.cursor += 1
        self._pages.append(Page(self.cursor, self._open, self._lost, decided))
        self._totals.append(decided)
        self._kept += len(self._open)
        self._open, self._hosts, self._lost = {}, {}, 0
        while self._kept > MAX_KEPT and len(self._pages) > 1:
            self._kept -= len(self._pages.popleft().sums)
        return True

    def after(self, cursor: int) -> tuple[list[Page], int]:
        """The pages after a cursor, and how many decisions between were lost."""
        pages = [each for each in self._pages if each.cursor > cursor]
        if not pages:
            return [], 0
        first = pages[0]
        before = first.decided - first.lost - sum(each.count for each in first.sums.values())
        oldest = self.cursor - len(self._totals) + 1
        known = self._totals[max(0, cursor - oldest)]
        return pages, max(0, before - known) + sum(each.lost for each in pages)
