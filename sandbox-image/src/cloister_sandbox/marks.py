"""Marks by which the processes of a tree are found whatever they did to leave it.

A process can change its session, its parent and its whole environment. What it cannot do without a
privilege that no tool has is raise a hard limit again: so the limit of the resident set size, which
has had no effect since Linux 2.4, carries the number of the tree and is inherited by every process
below it. A later tree has a higher number. So a process can make itself look like part of an older
tree, and ends with that one, or of none, and ends with the next; it can never look like the
server's own, which carries no number. One that its program starts in the moment before the server
gives that its number has none either, and counts as of no tree (see kin).
"""

import contextlib
import itertools
import os
import resource

from . import guard

_BASE = 1 << 60
_LIMIT = resource.RLIMIT_RSS
_PAGE = 4096
_OWN = resource.getrlimit(_LIMIT)[1]
"""What this process was started with, unlimited as a rule: no number."""


class Marks:
    """The numbers of the trees that live."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._living: set[int] = set()
        """The same numbers: each orphan's is looked for, and there may be many of both."""
        self._next = itertools.count(1)
        self.hold = False
        """Whether the kernel was seen to keep a number."""

    def put(self, pid: int, mark: str) -> None:
        """Give a process, which has started nothing yet, the number of its tree."""
        number = self._numbers.get(mark)
        if number is None:
            number = self._numbers[mark] = next(self._next)
            self._living.add(number)
        with contextlib.suppress(OSError, ValueError):
            guard.set_limit(pid, _LIMIT, _BASE + number)
            self.hold = self.hold or number_of(pid) == number

    def forget(self, mark: str) -> int:
        """The tree ends; returns the number it had, 0 when it had none."""
        number = self._numbers.pop(mark, 0)
        self._living.discard(number)
        return number

    def number(self, mark: str) -> int:
        """The number of a tree, 0 when it has none."""
        return self._numbers.get(mark, 0)

    def is_known(self, mark: str) -> bool:
        """Whether a living tree has this mark."""
        return mark in self._numbers

    def astray(self, number: int) -> bool:
        """Whether no living tree has this number."""
        return number != 0 and number not in self._living


def number_of(pid: int) -> int:
    """The number that a process carries; 0 when it carries none, or is gone."""
    try:
        hard = resource.prlimit(pid, _LIMIT)[1]
    except PermissionError:
        # A tool that is root has given it to another user.
        hard = _shown(pid)
    except (OSError, ValueError):
        return 0
    if hard == _OWN:
        return 0
    # A limit that a process lowered by itself belongs to no tree, and so to whichever ends next.
    return hard - _BASE if hard > _BASE else -1


def _shown(pid: int) -> int:
    """The limit as everybody may read it; this process's own where nobody may."""
    try:
        # By the bare calls: there may be thousands of them.
        fd = os.open(f"/proc/{pid}/limits", os.O_RDONLY | os.O_CLOEXEC)
        try:
            said = os.read(fd, _PAGE)
        finally:
            os.close(fd)
    except OSError:
        return _OWN
    _, found, behind = said.partition(b"\nMax resident set ")
    hard = behind.split(None, 2)[1] if found else str(_OWN).encode()
    return resource.RLIM_INFINITY if hard == b"unlimited" else int(hard)
