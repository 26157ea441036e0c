"""Confinement of file tools, and opening what was confined without a race.

The rules are those of agent_toolset_20260401: relative paths resolve against the workspace; `.` and
`..` collapse first; then every symbolic link is followed, and the result must lie in a permitted
directory. The resolved path has no links left, so it is opened beneath that directory without
following any: a link put there in between makes the open fail instead of leading outside. Files
that the Environment mounts at paths of their own may be read too.
"""

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import beneath

MAX_HOPS = 40
MAX_LONG_HOPS = 900
"""Links on the way to what exists already; Python's own functions follow about as many."""
MAX_STEPS = 10_000
"""Parts that are looked at on one way. A link is four thousand bytes of them, each of which may be
a link again: without a bound a few thousand links are a way of hours.
"""
_WORDS = {
    errno.ENOENT: "no such file or directory",
    errno.ENOTDIR: "not a directory",
    errno.EISDIR: "is a directory",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EEXIST: "file already exists",
    errno.ELOOP: "too many levels of symbolic links",
    # The system's own words tell of a connection.
    errno.ETIMEDOUT: "it takes too long",
}


class ToolFailure(Exception):
    """A tool's failure, in the words the model sees."""


def reason(error: OSError) -> str:
    """The words for an operating-system error."""
    number = error.errno or 0
    return _WORDS.get(number, os.strerror(number).lower())


@dataclass(frozen=True)
class Roots:
    """The directories that file tools may use."""

    workspace: Path
    others: tuple[Path, ...]
    read_only: tuple[Path, ...]
    mounted: frozenset[str] = frozenset()
    """Single files elsewhere that may be read."""

    @functools.cached_property
    def _real(self) -> tuple[str, ...]:
        """The directories themselves. What leads to them is not the tools' to change."""
        return tuple(map(os.path.realpath, (self.workspace, *self.others)))

    def __post_init__(self) -> None:
        # Now: later a tool may have put a link in the place of one that it owns.
        _ = self._real, self._real_read_only

    @functools.cached_property
    def _real_read_only(self) -> tuple[tuple[str, Path], ...]:
        """Likewise; else a link in the place of one would make what it leads to read-only."""
        return tuple((os.path.realpath(each), each) for each in self.read_only)

    def resolve(self, tool: str, given: str) -> str:
        """The absolute, link-free path that `given` means; it need not exist.

        Raises ToolFailure where it leaves the permitted directories or cannot be followed.
        """
        if "\0" in given:
            raise ToolFailure(f"{tool}: embedded null byte")
        path = os.path.normpath(os.path.join(self.workspace, given))
        try:
            resolved = follow(path)
        except OSError as error:
            raise ToolFailure(f"{tool}: path {given!r}: {reason(error)}") from None
        if self.holding(resolved) is None and resolved not in self.mounted:
            raise ToolFailure(
                f"{tool}: path {given!r} is outside the session's working directory"
                + (" and its other permitted directories" if self.others else "")
            )
        return resolved

    @functools.cached_property
    def _disks(self) -> tuple[tuple[str, int], ...]:
        """The directories on disks of this machine: with a trailing slash, and a descriptor of it.

        Others may be far away, and asking for a file's size may take as long as it likes.
        """
        found = []
        for root in self._real:
            with contextlib.suppress(OSError):
                directory = beneath.open_root(root)
                found.append((root.rstrip("/") + "/", directory))
                if not os.major(os.fstat(directory).st_dev):
                    os.close(found.pop()[1])
        return tuple(found)

    def find_at_once(self, given: str) -> int:
        """A descriptor (O_PATH) of a file, without ever waiting for a disk; raises OSError.

        Only for plain cases: no links on the way, which the kernel has in its cache. What fails
        here may still be there: ask `resolve` and `open_regular`, in a thread.
        """
        path = given if given.startswith("/") else f"{self._real[0]}/{given}"
        for top, directory in self._disks:
            if path.startswith(top) and "\0" not in path:
                return beneath.find_at_once(directory, path[len(top) :])
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), given)

    def writable(self, tool: str, given: str) -> str:
        """Like `resolve`, for writing; raises ToolFailure for what is read-only too."""
        return self._check_writable(tool, given, self.resolve(tool, given))

    def resolve_entry(self, tool: str, given: str) -> str:
        """Like `resolve`, for an entry of a directory itself: a link as the last part stays one."""
        if "\0" in given:
            raise ToolFailure(f"{tool}: embedded null byte")
        above, name = os.path.split(os.path.normpath(os.path.join(self.workspace, given)))
        try:
            path = os.path.join(follow(above), name)
        except OSError as error:
            raise ToolFailure(f"{tool}: {given}: {reason(error)}") from None
        if any(self.holds(path)):
            raise ToolFailure(f"{tool}: {given} is, or holds, a directory of the sandbox itself")
        path = os.path.join(self.resolve(tool, above), name)
        return self._check_writable(tool, given, path)

    def holds(self, path: str) -> Iterator[str]:
        """The roots and mounted files that are the resolved path, or lie in it."""
        kept = (*self._real, *(real for real, _ in self._real_read_only))
        for each in (*kept, *self.mounted):
            if _within(each, path):
                yield each

    def _check_writable(self, tool: str, given: str, resolved: str) -> str:
        if resolved in self.mounted:
            raise ToolFailure(f"{tool}: {given} is a read-only file of the Environment")
        for real, root in self._real_read_only:
            if _within(resolved, real):
                raise ToolFailure(f"{tool}: {given} is inside read-only directory {root}")
        return resolved

    def is_root(self, resolved: str) -> bool:
        """Whether a resolved path is one of the permitted directories itself."""
        return resolved in self._real

    def holding(self, resolved: str) -> str | None:
        """The permitted directory that holds a resolved path, or None."""
        return next((root for root in self._real if _within(resolved, root)), None)

    @contextlib.contextmanager
    def parent(self, resolved: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """The directory that holds a resolved path, open, and the path's name in it.

        No link on the way is followed. With `create`, directories that are missing are made.
        Raises OSError.
        """
        root, parts = self._split(resolved)
        if create:
            os.makedirs(root, exist_ok=True)
        top = beneath.open_root(root)
        try:
            make = beneath.make_directories if create else beneath.open_directory
            directory = make(top, parts[:-1])
        finally:
            os.close(top)
        try:
            yield directory, parts[-1] if parts else "."
        finally:
            os.close(directory)

    def directory(self, resolved: str, flags: int = beneath.DIRECTORY) -> int:
        """Open a resolved directory without following any link; the caller closes it.

        Raises OSError.
        """
        with self.parent(resolved) as (above, name):
            return os.open(name, flags, dir_fd=above)

    def nearest(self, resolved: str) -> int:
        """Open the deepest directory above a resolved path that exists; raises OSError."""
        root, parts = self._split(resolved)
        top = beneath.open_root(root)
        try:
            for count in range(max(len(parts) - 1, 0), 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    return beneath.open_directory(top, parts[:count])
            return os.dup(top)
        finally:
            os.close(top)

    def _split(self, resolved: str) -> tuple[str, tuple[str, ...]]:
        """The permitted directory that holds a path, and the path's parts below it."""
        root = self.holding(resolved) or ("/" if resolved in self.mounted else None)
        if root is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), resolved)
        return root, tuple(part for part in resolved[len(root) :].split("/") if part)

    def open(self, resolved: str, flags: int, mode: int = 0o644) -> int:
        """Open a resolved path without following any link; raises OSError.

        Never blocks on a FIFO or a device: the file is opened non-blocking. With O_CREAT, missing
        directories above it are made too.
        """
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self.parent(resolved, create=bool(flags & os.O_CREAT)) as (directory, name):
            return os.open(name, flags, mode, dir_fd=directory)

    def open_regular(
        self, resolved: str, flags: int, complain: Callable[[str], Exception], mode: int = 0o644
    ) -> int:
        """Open a regular file; anything else, and every error, raises what `complain` makes."""
        try:
            info = os.stat(resolved, follow_symlinks=False)
            if not stat.S_ISREG(info.st_mode):
                raise complain("not a regular file")
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise complain(_WORDS[errno.ENOENT]) from None
        except OSError as error:
            raise complain(reason(error)) from None
        try:
            fd = self.open(resolved, flags, mode)
        except OSError as error:
            raise complain(reason(error)) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise complain("not a regular file")
        return fd


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def follow(path: str, *, blindly: bool = False) -> str:
    """Follow every link in an absolute, normalised path; parts that do not exist are kept.

    `blindly` keeps what cannot be looked at as well. A chain of more than MAX_HOPS links must lead
    to what exists. Raises OSError.
    """
    hops = 0
    complete = True
    done = "/"
    todo = path.split("/")[::-1]
    for _ in range(MAX_STEPS):
        if not todo:
            break
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = os.path.dirname(done)
            continue
        candidate = os.path.join(done, part)
        try:
            target = os.readlink(candidate)
        except OSError as error:
            if not blindly and error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                raise
            complete = complete and error.errno == errno.EINVAL
            done = candidate
        else:
            hops += 1
            if target.startswith("/"):
                done = "/"
            todo += target.split("/")[::-1]
        # What is left takes a step for each part; so it is not gathered first.
        if len(todo) > MAX_STEPS or hops > MAX_LONG_HOPS or (hops > MAX_HOPS and not complete):
            raise _endless(path)
    if todo:
        raise _endless(path)
    return done


def _endless(path: str) -> OSError:
    return OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
