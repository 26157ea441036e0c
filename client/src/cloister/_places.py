"""Places below one directory of this machine, reached without following any link.

Names come from a sandbox, which may lie, and whose files a tree of this machine may hold from
before: so every step down is made on descriptors, and what is not a name is refused.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from ._errors import LocalFileError, call_error

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST = 200
"""Bytes of a name of which a partial file is called after it, or that an error has."""
_LATEST_NS = 2**33 * 10**9


@contextlib.contextmanager
def local_errors(verb: str, path: Path) -> Iterator[None]:
    """A block whose OSError is one of this machine: raises LocalFileError."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) and error.filename else path
        raise LocalFileError(f"cannot {verb} {where}: {error.strerror or error}") from None
    except ValueError as error:  # a name with a NUL
        raise LocalFileError(f"cannot {verb} {path}: {error}") from None


def checked(parts: Sequence[str]) -> tuple[str, ...]:
    """The parts of a name; raises DataLossError for what could lead elsewhere."""
    if not parts or any(each in ("", ".", "..") or "/" in each or "\0" in each for each in parts):
        shown = "/".join(parts)[:_LONGEST].encode(errors="replace").decode()
        raise call_error(grpc.StatusCode.DATA_LOSS, f"the sandbox names a file {shown!r}")
    return tuple(parts)


@dataclass
class Partial:
    """A file that is being written under another name."""

    directory: int
    hidden: str
    name: str
    fd: int
    size: int

    def write(self, data: bytes) -> None:
        """Append; raises OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]
        self.size += len(data)

    def place(self, mode: int, mtime_ns: int) -> None:
        """Give it its name, permission bits and time; raises OSError."""
        os.fchmod(self.fd, mode & 0o777)
        nanos = min(max(mtime_ns, 0), _LATEST_NS)
        os.utime(self.fd, ns=(nanos, nanos))
        os.rename(self.hidden, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def discard(self) -> None:
        """Remove what was written so far."""
        with contextlib.suppress(OSError):
            os.unlink(self.hidden, dir_fd=self.directory)

    def close(self) -> None:
        """Let go of it; what was written stays."""
        os.close(self.fd)
        os.close(self.directory)


class Place:
    """An open directory; everything is made below it."""

    def __init__(self, path: Path, *, make: bool) -> None:
        self.path = path
        with local_errors("write", path):
            if make:
                path.mkdir(parents=True, exist_ok=True)
            # The directory itself is the caller's choice, and may be named by a link.
            self._fd = os.open(path, _DIRECTORY & ~os.O_NOFOLLOW)

    def close(self) -> None:
        """Close it; nothing may use it any more."""
        os.close(self._fd)

    def look(self, parts: Sequence[str]) -> os.stat_result | None:
        """What is there; None for nothing, or for what is not reached without a link."""
        try:
            directory = self._open(parts[:-1])
        except OSError:
            return None
        try:
            return os.stat(parts[-1], dir_fd=directory, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(directory)

    def make(self, parts: Sequence[str]) -> None:
        """Make a directory; raises LocalFileError, and DataLossError as `begin` does."""
        with self.errors("make", parts):
            above = self._above(checked(parts))
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(parts[-1], dir_fd=above)
                os.close(os.open(parts[-1], _DIRECTORY, dir_fd=above))
            finally:
                os.close(above)

    def set_mode(self, parts: Sequence[str], mode: int) -> None:
        """Give a directory its permission bits; its owner keeps all of them."""
        with self.errors("write", parts):
            fd = self._open(checked(parts))
            try:
                os.fchmod(fd, mode & 0o777 | 0o700)
            finally:
                os.close(fd)

    def begin(self, parts: Sequence[str], etag: str = "") -> Partial:
        """A file to write; raises LocalFileError, and DataLossError for one in a directory that is
        not there: of a name with a million directories only those are made that are named, too.

        etag: of the file in the sandbox. What an earlier program wrote of it is gone on with, what
        it wrote of another one is removed.
        """
        parts = checked(parts)
        with self.errors("write", parts):
            directory = self._above(parts)
            try:
                return _begin(directory, parts[-1], etag)
            except BaseException:
                os.close(directory)
                raise

    def _above(self, parts: Sequence[str]) -> int:
        try:
            return self._open(parts[:-1])
        except FileNotFoundError:
            shown = "/".join(parts)[:_LONGEST].encode(errors="replace").decode()
            raise call_error(
                grpc.StatusCode.DATA_LOSS,
                f"the sandbox names {shown!r}, and not the directory that it is in",
            ) from None

    def _open(self, parts: Sequence[str]) -> int:
        fd = os.dup(self._fd)
        for each in parts:
            try:
                below = os.open(each, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def errors(self, verb: str, parts: Sequence[str]) -> contextlib.AbstractContextManager[None]:
        """A block whose OSError is about a place: raises LocalFileError."""
        return _named(verb, self.path.joinpath(*parts))


@contextlib.contextmanager
def _named(verb: str, path: Path) -> Iterator[None]:
    """OSErrors of calls on descriptors name no path that says anything."""
    try:
        yield
    except OSError as error:
        raise LocalFileError(f"cannot {verb} {path}: {error.strerror or error}") from None


def _begin(directory: int, name: str, etag: str) -> Partial:
    prefix = "." + os.fsdecode(os.fsencode(name)[:_LONGEST]) + "."
    # The etag is the sandbox's: it is no part of a name before it is hashed.
    mark = hashlib.blake2b(etag.encode(), digest_size=12).hexdigest() if etag else ""
    hidden = f"{prefix}{mark or secrets.token_hex(8)}.partial"
    if etag:
        _remove_others(directory, prefix, hidden)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(hidden, flags, 0o600, dir_fd=directory)
    try:
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and _is_free(fd):
            return Partial(directory, hidden, name, fd, info.st_size)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)  # another program writes it, or it is none of ours
    return _begin(directory, name, "")


def _is_free(fd: int) -> bool:
    """Whether no other copy writes this file; it is ours from now on."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_others(directory: int, prefix: str, hidden: str) -> None:
    theirs = re.compile(re.escape(prefix) + r"[0-9a-f]{24}\.partial")
    for each in os.listdir(directory):
        if theirs.fullmatch(each) and each != hidden:
            with contextlib.suppress(OSError):
                os.unlink(each, dir_fd=directory)
