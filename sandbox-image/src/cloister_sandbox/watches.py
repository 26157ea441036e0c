"""Following the changes below a path.

Directories are watched one by one; a new one is looked through once its watch is set, so that what
was made in it before is told too. The paths told are those the entries have at that moment.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from enum import Enum

from . import beneath, inotify
from .errors import Busy
from .failures import failed
from .lacking import lacks
from .paths import Roots
from .uploads import PREFIX
from .walks import walk

MAX_DIRECTORIES = 8192
MAX_NAMES = 4 * 1024 * 1024
"""Characters of their paths together."""
WALK_SECONDS = 60.0
"""Of looking through directories that are new: a tool can fill one with millions of files."""
_ANYTHING = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_EVENTS = 50_000
_MAX_TOLD = 16 * 1024 * 1024
"""Changes that are gathered for one answer, and characters of their paths; more are told as an
overflow."""


class Change(Enum):
    """What happened to a path."""

    CREATED = "created"
    MODIFIED = "modified"
    REMOVED = "removed"
    OVERFLOW = "overflow"


class Watch:
    """One followed path. `fd` becomes readable when something happened; then call `changes`.

    Not for several threads at once.
    """

    def __init__(self, roots: Roots, path: str, resolved: str, *, recursive: bool) -> None:
        """Raises CallError."""
        self._path = resolved
        self._recursive = recursive
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        """The last watch by each of these names."""
        self._named = 0
        """Characters of these names."""
        self.ended = False
        """The path itself is gone, or has another name."""
        self._roots = roots
        self._until = time.monotonic() + WALK_SECONDS
        try:
            self._inotify = inotify.Inotify()
        except OSError as error:
            raise failed(path, error) from None
        self.fd = self._inotify.fd
        try:
            # Not kept open: the end of a file is told only when nothing holds it.
            top = roots.directory(resolved, _ANYTHING)
            try:
                self._identity = _identity(top)
                self._add(top, "")
                is_directory = stat.S_ISDIR(os.fstat(top).st_mode)
            finally:
                os.close(top)
            if recursive and is_directory:
                for _ in self._enter(""):
                    pass
        except OSError as error:
            self.close()
            raise failed(path, error) from None
        except Busy:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        self._inotify.close()

    def changes(self, stopped: Callable[[], bool]) -> list[tuple[Change, str]]:
        """What happened since the last call, in order; a path modified again is told once.

        Raises Busy when there are too many directories, or files to look through, and when the
        server lacks a descriptor to look.
        """
        told: dict[tuple[Change, str], None] = {}
        size = 0
        self._until = time.monotonic() + WALK_SECONDS
        for event in self._inotify.read():
            for change, relative in self._told(event):
                if relative.rpartition("/")[2].startswith(PREFIX):
                    continue  # an upload before its end
                key = (change, self._full(relative))
                if change is not Change.MODIFIED:
                    # What was made or removed meanwhile is told in its order.
                    told.pop(key, None)
                    told.pop((Change.MODIFIED, key[1]), None)
                elif (Change.CREATED, key[1]) in told:
                    continue
                told.setdefault(key)
                size += len(key[1])
                if size > _MAX_TOLD:
                    break
            if len(told) > _MAX_EVENTS or size > _MAX_TOLD:
                for _ in self._inotify.read():
                    pass
                return self._overflow()
            if self.ended or stopped():
                break
        return list(told)

    def _overflow(self) -> list[tuple[Change, str]]:
        if self._recursive:
            # Both what was made and what is gone may be among what was lost: those that are there
            # get the numbers again that they have.
            before, top = self._names, self._numbers[""]
            self._names, self._numbers, self._named = {top: ""}, {"": top}, 0
            for _ in self._enter(""):
                pass
            for watch in before.keys() - self._names.keys():
                self._inotify.remove(watch)
        told = [(Change.OVERFLOW, self._path)]
        if not self._is_there():
            self.ended = True
            told.append((Change.REMOVED, self._path))
        return told

    def _is_there(self) -> bool:
        """Whether the path still leads to what is watched."""
        try:
            top = self._roots.directory(self._path, _ANYTHING)
        except OSError as error:
            self._pass_over("", error)
            return False
        try:
            return _identity(top) == self._identity
        finally:
            os.close(top)

    def _told(self, event: inotify.Event) -> Iterator[tuple[Change, str]]:
        if event.mask & inotify.Q_OVERFLOW:
            yield from ((change, "") for change, _ in self._overflow())
            return
        if event.mask & inotify.IGNORED:
            self._forget(event.watch)
            return
        directory = self._names.get(event.watch)
        if directory is None:
            return
        if event.mask & (inotify.DELETE_SELF | inotify.MOVE_SELF):
            if directory == "":
                self.ended = True
                yield Change.REMOVED, ""
            return
        relative = "/".join(filter(None, (directory, event.name)))
        if event.mask & (inotify.CREATE | inotify.MOVED_TO):
            yield Change.CREATED, relative
            if self._recursive and event.mask & inotify.ISDIR:
                yield from ((Change.CREATED, each) for each in self._enter(relative))
        elif event.mask & (inotify.DELETE | inotify.MOVED_FROM):
            if event.mask & inotify.ISDIR:
                self._leave_one(relative)
                if event.mask & inotify.MOVED_FROM:
                    self._leave_below(relative)
            yield Change.REMOVED, relative
        else:
            yield Change.MODIFIED, relative

    def _enter(self, relative: str) -> Iterator[str]:
        """Watch a directory and those below it; yields what is in them already."""
        try:
            directory = self._open(relative)
        except OSError as error:
            self._pass_over(relative, error)
            return
        try:
            self._add(directory, relative)
            for found in walk(directory):
                if time.monotonic() > self._until:
                    why = "too many files to look through in time"
                    raise Busy("TREE_TOO_LARGE", why, 60.0, "watch-time")
                below = "/".join(filter(None, (relative, found.relative)))
                if found.is_directory:
                    # Watched before the walk comes to list it: nothing is missed in between.
                    self._enter_one(found.name, found.directory, below)
                yield below
        except OSError as error:
            self._pass_over(relative, error)
        finally:
            os.close(directory)

    def _open(self, relative: str) -> int:
        """A directory below the watched one; raises OSError, also when that is another by now."""
        top = self._roots.directory(self._path)
        try:
            if _identity(top) != self._identity:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            parts = relative.split("/") if relative else ()
            return beneath.open_directory(top, parts, beneath.LISTABLE)
        finally:
            os.close(top)

    def _enter_one(self, name: str, directory: int, relative: str) -> None:
        try:
            fd = beneath.open_directory(directory, (name,))
        except OSError as error:
            self._pass_over(relative, error)
            return
        try:
            self._add(fd, relative)
        finally:
            os.close(fd)

    def _pass_over(self, relative: str, error: OSError) -> None:
        """What is there no more; raises Busy where nobody can tell, and changes may be lost."""
        if lacks(error):
            raise failed(self._full(relative), error) from None

    def _add(self, file: int, relative: str) -> None:
        if len(self._names) >= MAX_DIRECTORIES or self._named > MAX_NAMES:
            raise Busy(
                "TOO_MANY_DIRECTORIES",
                f"more than {MAX_DIRECTORIES} directories to watch, or longer paths than are kept: "
                "watch a smaller tree",
                60.0,
                "watch-directories",
                MAX_DIRECTORIES,
            )
        try:
            watch = self._inotify.add(file)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # The kernel's word for its bound of watches per user.
            why = "the node's bound of watches is reached"
            raise Busy("TOO_MANY_WATCHES", why, 60.0, "node-watches") from None
        self._forget(watch)
        self._names[watch] = relative
        self._numbers[relative] = watch
        self._named += len(relative)

    def _forget(self, watch: int) -> None:
        relative = self._names.pop(watch, "")
        self._named -= len(relative)
        if self._numbers.get(relative) == watch:
            del self._numbers[relative]

    def _leave_one(self, relative: str) -> None:
        watch = self._numbers.get(relative)
        if watch is not None:
            self._inotify.remove(watch)
            self._forget(watch)

    def _leave_below(self, relative: str) -> None:
        """Of a directory that is gone nothing is left below; only one that moved takes it along."""
        prefix = relative + "/"
        for watch, name in list(self._names.items()):
            if name == relative or name.startswith(prefix):
                self._inotify.remove(watch)
                self._forget(watch)

    def _full(self, relative: str) -> str:
        return f"{self._path}/{relative}" if relative else self._path


def _identity(file: int) -> tuple[int, int]:
    info = os.fstat(file)
    return info.st_dev, info.st_ino
