"""What is still read for programs and commands that ended: the output of what they left behind.

It is dropped, but somebody has to read it, or who prints would block. Each takes a descriptor, for
as long as any process holds the other end, and one process can hold those of thousands of commands.
So of too many the oldest are closed, and who prints there learns that nobody reads.
"""

from typing import Protocol

MOST = 256


class Leftover(Protocol):
    """An end of a pipe that nobody's result waits for."""

    @property
    def held(self) -> bool:
        """Whether a process may still print."""

    def close(self) -> None:
        """Stop reading."""


class Leftovers:
    """Those of one server. Used on the event loop only."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: list[Leftover] = []

    def keep(self, one: Leftover) -> None:
        """Read on, unless there are too many."""
        if not one.held:
            return
        self._kept.append(one)
        if len(self._kept) > self._most:
            self._kept = [each for each in self._kept if each.held]
            while len(self._kept) > self._most:
                self._kept.pop(0).close()


KEPT = Leftovers()
