"""Sessions that wait for a place in an Environment with `maxSessions`, oldest first."""

from bisect import bisect_left, insort
from collections.abc import Iterator

SHOWN = 5
"""So near to the front each step is told."""

Entry = tuple[str, str, str]
"""When a Session was made, its name, its UID."""


class Line:
    """Who waits, in the order in which they go; a look costs as much for ten as for thousands."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, entry: Entry) -> None:
        """Stand in line; once."""
        if not self._is_at(bisect_left(self._entries, entry), entry):
            insort(self._entries, entry)

    def remove(self, entry: Entry) -> bool:
        """Leave it; whether it was there."""
        where = bisect_left(self._entries, entry)
        found = self._is_at(where, entry)
        if found:
            del self._entries[where]
        return found

    def ahead_of(self, entry: Entry) -> int:
        """How many go before this one."""
        return bisect_left(self._entries, entry)

    def first(self, count: int) -> list[Entry]:
        """Those in front."""
        return self._entries[: max(0, count)]

    def _is_at(self, where: int, entry: Entry) -> bool:
        return where < len(self._entries) and self._entries[where] == entry


def worth_telling(shown: int | None, position: int) -> bool:
    """Whether a status that shows another position is to be written anew.

    In front each step is; further back a quarter of the way, so that a long line costs few writes
    for each session and not one for each step of each.
    """
    if shown is None or position > shown:
        return shown != position
    return position != shown and (position <= SHOWN or position <= shown * 3 // 4)
