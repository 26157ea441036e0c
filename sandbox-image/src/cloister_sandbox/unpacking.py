"""Unpacking a tar archive into a directory, confined to it.

The whole archive is read once before anything is written, so that one bad member refuses all of it.
No link is followed while writing, whether it was there before, came with the archive or is swapped
in meanwhile. Files are made under another name and renamed: nothing is written through a hard link.
"""

import contextlib
import math
import os
import re
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from . import beneath
from .entries import shown
from .errors import CallError, WrongState
from .uploads import MAX_SECONDS, PREFIX

Going = Callable[[], None]
"""Called again and again; raises when the work is to stop."""

MAX_MEMBERS = 1_000_000
MAX_LEVELS = 256
_MAX_HEADER = 128 * 1024
"""Bytes of one long name or extended header; the tar reader takes them in one piece."""
_MAX_HEADERS = 512 * 1024
"""Bytes of all headers of one member; the tar reader keeps them until it has come to the last."""
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_WITH_BODIES = (*_EXTENDED, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_TYPE = slice(156, 157)
"""Where a header has its type."""
_LENGTH = re.compile(rb"([0-9]{1,10}) [^=\n]")
"""How a record of an extended header begins: its length, then its key."""
_MAX_DIGITS = 256
"""In a row, of an extended header; a name has no more characters."""
_DIGITS = bytes(0x30 + (0x30 <= each <= 0x39) for each in range(256))  # 1 for a digit, 0 for others
_KINDS = "only files, directories and links are unpacked"
_COPY = 1024 * 1024


class _Bounded:
    """What the tar reader needs of a file, with no read larger than a header may be.

    `room` is for so many more bytes.

    What a tool writes behind its end is not read: what is unpacked stays as bounded as what came.
    Extended headers are looked through before the tar reader has them: of records that overlap it
    makes as many copies of the rest, and numbers in a row take it the square of the time.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._at = 0
        self._body = b""
        """The type of the header whose body comes next, if that is part of a member's header."""
        self.room = _MAX_HEADERS

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        self._at = position
        return position

    def read(self, size: int) -> bytes:
        self.room -= size
        if not 0 <= size <= _MAX_HEADER or self.room < 0:
            raise tarfile.ReadError("a header is too large")
        data = os.pread(self._fd, min(size, max(self._size - self._at, 0)), self._at)
        self._at += len(data)
        body, self._body = self._body, b""
        if body in _EXTENDED and not _are_records(data):
            raise tarfile.ReadError("an extended header is damaged")
        if not body and data[_TYPE] in _WITH_BODIES:
            self._body = data[_TYPE]
        return data


def _are_records(data: bytes) -> bool:
    """Whether the records of an extended header follow each other, up to its padding."""
    if b"1" * (_MAX_DIGITS + 1) in data.translate(_DIGITS):
        return False
    at = 0
    while at < len(data) and data[at]:
        begin = _LENGTH.match(data, at)
        end = at + int(begin[1]) if begin else 0
        if begin is None or not begin.end() < end <= len(data) or data[end - 1] != ord("\n"):
            return False
        if data.find(b"=", begin.end(), end) < 0:
            return False
        at = end
    return True


def check(fd: int, size: int, going: Going) -> None:
    """Raise WrongState for an archive that is damaged or leads out of its directory.

    The archive has `size` bytes; what is behind them does not count.
    """
    for member in _members(fd, size):
        going()
        _check(member)


def unpack(fd: int, size: int, target: int, going: Going, *, skip: int = 0) -> Iterator[None]:
    """Unpack an archive that was checked into an open directory, behind its first `skip` members.

    Yields after each member. Raises what `check` and `going` raise; OSError where writing fails,
    with the member's name as its filename.
    """
    for number, member in enumerate(_members(fd, size)):
        going()
        if number < skip:
            continue
        _check(member)
        try:
            _write(member, fd, target, going)
        except OSError as error:
            error.filename = member.name
            raise
        yield


def _members(fd: int, size: int) -> Iterator[tarfile.TarInfo]:
    bounded = _Bounded(fd, size)
    file: BinaryIO = bounded  # type: ignore[assignment]
    count = 0
    try:
        with tarfile.TarFile(fileobj=file, mode="r", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all it has seen
                if archive.pax_headers:
                    # Those for all members that come, of which it takes in whatever they are.
                    known = archive.pax_headers.items()
                    archive.pax_headers = {k: v for k, v in known if k in tarfile.PAX_FIELDS}
                bounded.room = _MAX_HEADERS
                count += 1
                if count > MAX_MEMBERS:
                    raise _refused(member.name, f"more than {MAX_MEMBERS} members")
                if member.isreg() and member.offset_data + member.size > size:
                    raise tarfile.ReadError("it ends in the middle of a member")
                if member.issparse():
                    # Before the next header: what was read of this one's data looks like a header.
                    raise _refused(member.name, _KINDS)
                yield member
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise WrongState("BAD_ARCHIVE", f"this is not a whole tar archive: {error}") from None


def _check(member: tarfile.TarInfo) -> None:
    parts = _parts(member.name)
    if len(parts) > MAX_LEVELS:
        raise _refused(member.name, f"deeper than {MAX_LEVELS} levels")
    if member.issym():
        _check_link(member, parts)
    elif member.islnk():
        if not parts or not _parts(member.linkname):
            raise _refused(member.name, "its link's target is no name")
    elif not (member.isdir() or member.isreg()):
        raise _refused(member.name, _KINDS)
    elif not parts and not member.isdir():
        raise _refused(member.name, "it has no name")


def _check_link(member: tarfile.TarInfo, parts: list[str]) -> None:
    """A link may climb first and descend then; each step up is a directory of the archive.

    `..` after a name could leave through another link, and is refused.
    """
    steps = [each for each in member.linkname.split("/") if each not in ("", ".")]
    up = 0
    while up < len(steps) and steps[up] == "..":
        up += 1
    if member.linkname.startswith("/") or ".." in steps[up:] or up > len(parts) - 1:
        raise _refused(member.name, "its target is outside the directory")
    if not parts or not member.linkname or "\0" in member.linkname:
        raise _refused(member.name, "it has no name or no target")


def _parts(name: str) -> list[str]:
    """The parts of a member's name; raises WrongState for one that leads elsewhere."""
    parts = [each for each in name.split("/") if each not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise _refused(name, "its name leads out of the directory")
    return parts


def _refused(name: str, why: str) -> CallError:
    name = shown(name[:300])
    return WrongState("MEMBER_REFUSED", f"{name}: {why}; nothing was unpacked", member=name)


def _write(member: tarfile.TarInfo, source: int, target: int, going: Going) -> None:
    parts = _parts(member.name)
    if member.isdir():
        os.close(beneath.make_directories(target, parts))
        if parts and member.mode & 0o700 != 0o700:
            return  # its owner could not fill it
        if parts:
            _set_mode(target, parts, member.mode & 0o777)
        return
    directory = beneath.make_directories(target, parts[:-1])
    hidden = PREFIX + secrets.token_hex(8)
    try:
        if member.issym():
            os.symlink(member.linkname, hidden, dir_fd=directory)
        elif member.islnk():
            _link(target, _parts(member.linkname), directory, hidden)
        else:
            _copy(member, source, directory, hidden, going)
        os.rename(hidden, parts[-1], src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        # Also after success: renaming one name of a file to another of the same file does nothing.
        with contextlib.suppress(OSError):
            os.unlink(hidden, dir_fd=directory)
        os.close(directory)


def _set_mode(target: int, parts: list[str], mode: int) -> None:
    fd = beneath.open_directory(target, parts, beneath.LISTABLE)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _link(target: int, parts: list[str], directory: int, name: str) -> None:
    above = beneath.open_directory(target, parts[:-1])
    try:
        info = os.stat(parts[-1], dir_fd=above, follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode):
            raise FileNotFoundError(2, "its link's target is no file")
        os.link(parts[-1], name, src_dir_fd=above, dst_dir_fd=directory, follow_symlinks=False)
    finally:
        os.close(above)


def _copy(member: tarfile.TarInfo, source: int, directory: int, name: str, going: Going) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        at, end = member.offset_data, member.offset_data + member.size
        while at < end:
            going()
            data = os.pread(source, min(_COPY, end - at), at)
            if not data:
                raise OSError(5, "the archive changed")
            view = memoryview(data)
            while view:
                written = os.write(fd, view)
                at, view = at + written, view[written:]
        os.fchmod(fd, member.mode & 0o777)
        # An extended header may say anything that is a float.
        seconds = min(max(member.mtime, 0), MAX_SECONDS) if math.isfinite(member.mtime) else 0
        os.utime(fd, (seconds, seconds))
    finally:
        os.close(fd)
