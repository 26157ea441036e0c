"""A tar stream from a sandbox, unpacked as it comes, in bounded memory.

The exec server sends plain members with GNU's long names and nothing else. Whatever another sender
puts in is refused, so that no extension of the format can name a place or a size in a second way.
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from ._errors import CallError, call_error
from ._places import Partial, Place, checked

_BLOCK = tarfile.BLOCKSIZE
_LONGEST = 64 * 1024
"""Bytes of one name."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_MAX_SECONDS = 2**33


@dataclass(frozen=True)
class Member:
    """A file or directory as its header describes it."""

    parts: tuple[str, ...]
    size: int
    mode: int
    seconds: int


class Unpacker:
    """Takes the bytes in any pieces; its methods block.

    prefix: where below the place it goes. wanted: whether a file is to be written. time: the
    nanoseconds it was modified at. arrived: told of each file that took its name. made: told of
    each directory that was not there; what it raises ends the copy. limit: bytes that the stream
    may have.
    """

    def __init__(
        self,
        place: Place,
        prefix: tuple[str, ...],
        *,
        wanted: Callable[[Member], bool],
        time: Callable[[Member], int],
        arrived: Callable[[Member], object],
        made: Callable[[Member], object],
        limit: int,
    ) -> None:
        self._place = place
        self._prefix = prefix
        self._wanted = wanted
        self._time = time
        self._arrived = arrived
        self._made = made
        self._room = limit
        self._held = bytearray()
        self._skip = 0
        self._left = 0
        self._current: tuple[Member, Partial] | None = None
        self._long: dict[bytes, bytes] = {}
        self._blank = 0

    def feed(self, data: bytes) -> None:
        """The next bytes; raises DataLossError for a stream that is wrong, and LocalFileError."""
        self._room -= len(data)
        if self._room < 0:
            raise _wrong("is longer than what it listed")
        self._held += data
        at = 0
        while (used := self._step(at)) > 0:
            at += used
        del self._held[:at]

    def end(self) -> None:
        """The stream is over; raises DataLossError when it is not whole."""
        if self._blank < 2 or self._held or self._left or self._skip:
            raise _wrong("ends in the middle")

    def close(self) -> None:
        """Remove what was not written to its end."""
        if self._current is not None:
            _, partial = self._current
            self._current = None
            partial.discard()
            partial.close()

    def _step(self, at: int) -> int:
        """Use some of the bytes held from there on; returns how many, 0 when more are needed."""
        available = len(self._held) - at
        if self._left and available:
            used = min(self._left, available)
            self._content(bytes(self._held[at : at + used]))
            return used
        if self._skip and available:
            used = min(self._skip, available)
            self._skip -= used
            return used
        if available < _BLOCK:
            return 0
        block = bytes(self._held[at : at + _BLOCK])
        if not any(block):
            self._blank += 1
            return _BLOCK
        if self._blank:
            raise _wrong("goes on behind its end")
        return self._header(block, at)

    def _header(self, block: bytes, at: int) -> int:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise _wrong(f"has a damaged header: {error}") from None
        if header.size < 0:
            raise _wrong("has a member of a negative size")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            return self._long_name(header, at)
        long, self._long = self._long, {}
        name = long.get(tarfile.GNUTYPE_LONGNAME)
        given = header.name if name is None else name.decode("utf-8", "surrogateescape")
        member = Member(
            self._prefix + checked(given.rstrip("/").split("/")),
            header.size,
            header.mode,
            min(max(int(header.mtime), 0), _MAX_SECONDS),
        )
        if header.type in _FILES:
            self._begin(member)
        elif header.type == tarfile.DIRTYPE and not header.size:
            if self._place.look(member.parts) is None:
                self._place.make(member.parts)
                self._made(member)
        elif header.type != tarfile.SYMTYPE or header.size:
            raise _wrong("has a member that is no file, directory or link")
        return _BLOCK

    def _long_name(self, header: tarfile.TarInfo, at: int) -> int:
        if not 0 < header.size <= _LONGEST or header.type in self._long:
            raise _wrong("has a name that is too long")
        padded = header.size + -header.size % _BLOCK
        if len(self._held) - at < _BLOCK + padded:
            return 0
        start = at + _BLOCK
        value = bytes(self._held[start : start + header.size])
        self._long[header.type] = value.partition(b"\0")[0]
        return _BLOCK + padded

    def _begin(self, member: Member) -> None:
        padding = -member.size % _BLOCK
        if member.size + padding > self._room + len(self._held):
            raise _wrong("has a file larger than what it listed")
        if not self._wanted(member):
            self._skip = member.size + padding
            return
        self._left, self._skip = member.size, padding
        self._current = member, self._place.begin(member.parts)
        self._content(b"")

    def _content(self, data: bytes) -> None:
        if self._current is None:
            raise RuntimeError("bytes of no file")
        member, partial = self._current
        with self._place.errors("write", member.parts):
            partial.write(data)
            self._left -= len(data)
            if self._left:
                return
            partial.place(member.mode, self._time(member))
        self._current = None
        partial.close()
        self._arrived(member)


def _wrong(what: str) -> CallError:
    return call_error(grpc.StatusCode.DATA_LOSS, f"the sandbox sends an archive that {what}")
