"""Walking a tree whose owner may change it meanwhile: links are met, never followed.

Each directory is opened from the top again when its turn comes, so that a walk holds two
descriptors however deep or wide the tree is, and a directory swapped for a link is passed over.
"""

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from . import beneath
from .lacking import lacks

SORTED = 20_000
"""Names of one directory that are put in order; those after them come as the kernel tells."""
MAX_PENDING = 500_000
"""Directories that wait for their turn."""
MAX_WAITING = 16 * 1024 * 1024
"""Characters of their names together."""
MAX_LEVELS = 1000
MAX_PATH = 16_384
"""Characters of a path below the top. No program names a file by more than 4,096 bytes; without a
bound a thousand long names are a path of a quarter of a megabyte, for each entry that is below.
"""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class TooLarge(Exception):
    """The tree exceeds a bound of the walk; the message says which."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry; `directory` is open while the entry is looked at, and no longer."""

    relative: str
    name: str
    info: os.stat_result
    directory: int

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory itself, not a link to one."""
        return stat.S_ISDIR(self.info.st_mode)


def walk(root: int, levels: int = MAX_LEVELS, *, strict: bool = False) -> Iterator[Found]:
    """Every entry below an open directory: a directory's own, then those of each one in it.

    `levels` bounds the depth, 1 is the directory's own entries; so does MAX_PATH. What vanishes is
    passed over. Directories that cannot be read are passed over, unless `strict`: then OSError is
    raised, and TooLarge for a tree that is deeper. The root itself always raises, and so does what
    the server lacks a descriptor for.
    """
    # Those of one directory share its path.
    pending = [("", "", 1)]
    waiting = 0
    while pending:
        above, last, level = pending.pop()
        waiting -= len(last)
        below = f"{above}/{last}" if above else last
        try:
            directory = beneath.open_directory(
                root, below.split("/") if below else (), beneath.LISTABLE
            )
        except OSError as error:
            if below and (error.errno in _GONE or not (strict or lacks(error))):
                continue
            error.filename = below
            raise
        deeper: list[tuple[str, str, int]] = []
        too_deep = ""
        try:
            for name in _names(directory):
                try:
                    info = os.stat(name, dir_fd=directory, follow_symlinks=False)
                except OSError as error:
                    if lacks(error):
                        raise
                    continue
                relative = f"{below}/{name}" if below else name
                if stat.S_ISDIR(info.st_mode):
                    if level == levels:
                        too_deep = f"more than {levels} levels of directories"
                    elif len(relative) > MAX_PATH:
                        too_deep = f"a directory at a path of more than {MAX_PATH} characters"
                    else:
                        deeper.append((below, name, level + 1))
                        waiting += len(name)
                    if len(pending) + len(deeper) > MAX_PENDING:
                        raise TooLarge(f"more than {MAX_PENDING} directories")
                    if waiting > MAX_WAITING:
                        raise TooLarge("too many directories with long names")
                yield Found(relative, name, info, directory)
        finally:
            os.close(directory)
        if too_deep and strict:
            raise TooLarge(too_deep)
        pending.extend(reversed(deeper))


def _names(directory: int) -> Iterator[str]:
    with os.scandir(directory) as entries:
        names = (each.name for each in entries)
        yield from sorted(itertools.islice(names, SORTED))
        yield from names
