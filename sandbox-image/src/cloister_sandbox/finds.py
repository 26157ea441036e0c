"""Finding files by a pattern: the one engine of the glob tool and of Files.Glob."""

import errno
import heapq
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .entries import read_link
from .lacking import passing_over
from .paths import Roots, follow
from .toolset.patterns import Pattern
from .walks import Found, TooLarge, walk

MAX_WALK = 500_000
MAX_KEPT = 4 * 1024 * 1024
"""Characters of the paths that are kept; more than an answer holds."""
MAX_WAITING = 32 * 1024 * 1024
"""Characters of the paths of links that wait until what they lead to is searched, and what each
takes besides.
"""
_EACH = 512


@dataclass(frozen=True, slots=True)
class Match:
    """A path that matches, as it was seen."""

    path: str
    info: os.stat_result
    link: str


def find(
    roots: Roots, root: str, pattern: Pattern, limit: int, stopped: Callable[[], bool]
) -> tuple[list[Match], int]:
    """The newest matches below a resolved directory, and how many there are.

    There are at most `limit` of them, and fewer where their paths are very long.
    A link that leads out of the directory is no match; one that leads to a directory in it is
    entered where the pattern names it other than by `**`. Nothing is found where there is no
    directory. Raises TooLarge beyond MAX_WALK entries or MAX_WAITING, OSError without a descriptor.
    """
    kept: list[tuple[int, str, int, Match]] = []
    total = size = 0
    for match, age in _matches(roots, root, pattern, stopped):
        total += 1
        size += len(match.path)
        # Of two with the same time the one whose path comes first counts as newer. A directory that
        # a tool changes meanwhile may list a path twice.
        heapq.heappush(kept, (age, _Reversed(match.path), total, match))
        while len(kept) > limit or size > MAX_KEPT:
            size -= len(heapq.heappop(kept)[-1].path)
    kept.sort(reverse=True)
    return [match for *_, match in kept], total


def _matches(
    roots: Roots, root: str, pattern: Pattern, stopped: Callable[[], bool]
) -> Iterator[tuple[Match, int]]:
    """Each match, and when what it is or leads to was changed."""

    def go_on() -> None:
        if stopped():
            raise TooLarge("more entries than can be looked at in time")

    seen, waiting = 0, len(root) + _EACH
    pending: list[tuple[str, str, frozenset[int]]] = [(root, "", frozenset())]
    while pending:
        where, above, links = pending.pop()
        waiting -= len(where) + len(above) + _EACH
        for found in _entries(roots, where):
            seen += 1
            if seen > MAX_WALK:
                raise TooLarge(f"more than {MAX_WALK} entries")
            go_on()
            relative = f"{above}/{found.relative}" if above else found.relative
            path, link, age = f"{root.rstrip('/')}/{relative}", "", found.info.st_mtime_ns
            real = f"{where.rstrip('/')}/{found.relative}"
            if stat.S_ISLNK(found.info.st_mode):
                try:
                    endless, is_directory = _leads(path)
                    # Of thousands of links the kernel follows forty; none of them leads anywhere.
                    real = real if endless else follow(path, blindly=True)
                except OSError:  # no link any more, or by now such a one
                    continue
                if is_directory and pattern.enters(relative, links, go_on):
                    pending.append((real, relative, links | {relative.count("/")}))
                    waiting += len(real) + len(relative) + _EACH
                    if waiting > MAX_WAITING:
                        raise TooLarge("too many links to directories")
                link = read_link(found.name, found.directory, found.info)
                age = _age(path)
            inside = f"{real}/".startswith(f"{root.rstrip('/')}/")
            if inside and pattern.matches(relative, links, go_on):
                yield Match(path, found.info, link), age


def _entries(roots: Roots, where: str) -> Iterator[Found]:
    """The entries below a resolved directory, none where it cannot be listed or is none; raises
    OSError where nobody can tell.
    """
    with passing_over():
        directory = roots.directory(where)
        try:
            yield from walk(directory)
        finally:
            os.close(directory)


def _leads(path: str) -> tuple[bool, bool]:
    """Whether a path leads over more links than the kernel follows, and whether to a directory."""
    try:
        info = os.stat(path)  # noqa: PTH116 - a Path costs more than the call
    except OSError as error:
        return error.errno == errno.ELOOP, False
    return False, stat.S_ISDIR(info.st_mode)


def _age(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - a Path costs more than the call
    except OSError:
        return 0


class _Reversed(str):
    """A string that sorts the other way round."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)

    def __gt__(self, other: str) -> bool:
        return str.__lt__(self, other)
