"""Finding files by a pattern: the one engine of the glob tool and of Files.Glob."""

import heapq
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .entries import read_link
from .paths import Roots
from .toolset.patterns import Pattern
from .walks import TooLarge, walk

MAX_WALK = 500_000


@dataclass(frozen=True, slots=True)
class Match:
    """A path that matches, as it was seen."""

    path: str
    info: os.stat_result
    link: str


def find(
    roots: Roots, root: str, pattern: Pattern, limit: int, stopped: Callable[[], bool]
) -> tuple[list[Match], int]:
    """The newest matches below a resolved directory, at most `limit`, and how many there are.

    Links are not entered; a link that leads out of the permitted directories is no match. Nothing
    is found where there is no directory. Raises TooLarge beyond MAX_WALK entries.
    """
    try:
        directory = roots.directory(root)
    except OSError:
        return [], 0
    kept: list[tuple[int, str, Match]] = []
    total = seen = 0
    try:
        for found in walk(directory):
            seen += 1
            if seen > MAX_WALK:
                raise TooLarge(f"more than {MAX_WALK} entries")
            if stopped():
                break
            if not pattern.matches(found.relative):
                continue
            path = str(Path(root) / found.relative)
            link = ""
            if stat.S_ISLNK(found.info.st_mode):
                if roots.holding(os.path.realpath(path)) is None:
                    continue
                link = read_link(found.name, found.directory, found.info)
            total += 1
            match = Match(path, found.info, link)
            # Of two with the same time the one whose path comes first counts as newer.
            item = (found.info.st_mtime_ns, _Reversed(path), match)
            if len(kept) < limit:
                heapq.heappush(kept, item)
            else:
                heapq.heappushpop(kept, item)
    except OSError:
        return [], 0  # not even the root can be listed
    finally:
        os.close(directory)
    kept.sort(reverse=True)
    return [match for _, _, match in kept], total


class _Reversed(str):
    """A string that sorts the other way round."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)

    def __gt__(self, other: str) -> bool:
        return str.__lt__(self, other)
