"""How far a copy is, counted over all its files."""

from collections.abc import Callable

Progress = Callable[[int, int | None, int, str], object]
"""Called with the bytes done, the bytes in all (None while unknown), the files done, and the name
of what is copied now. What was there already counts as done. It runs on the event loop that copies,
which for Session is a thread of its own: it must not block. What it raises ends the copy."""


class Meter:
    """Counts every file once, whatever has to be sent again."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._total: int | None = None
        self._bytes = 0
        self._under_way: dict[str, int] = {}
        self._complete: set[str] = set()

    def begin(self, total: int) -> None:
        """The size of everything is known."""
        self._total = total
        self._tell("")

    def at(self, name: str, offset: int) -> None:
        """So many bytes of a file are there."""
        if name in self._complete:
            return
        self._bytes += offset - self._under_way.get(name, 0)
        self._under_way[name] = offset
        self._tell(name)

    def done(self, name: str, size: int) -> None:
        """A file is complete."""
        if name in self._complete:
            return
        self._bytes += size - self._under_way.pop(name, 0)
        self._complete.add(name)
        self._tell(name)

    def _tell(self, name: str) -> None:
        if self._progress is not None:
            self._progress(self._bytes, self._total, len(self._complete), name)
