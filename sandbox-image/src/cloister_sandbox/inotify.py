"""inotify(7), as far as watching directories needs it."""

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO = 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
Q_OVERFLOW, IGNORED, ISDIR = 0x4000, 0x8000, 0x40000000
CHANGES = (
    MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
)  # fmt: skip
_ONLY_WHAT_IS_LINKED = 0x4000000
_BUFFER = 65_536
_READS = 4
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: to the watched file itself, or to `name` in it."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One queue of events. `fd` becomes readable when there are some; nothing here blocks."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise _error()

    def add(self, file: int) -> int:
        """Watch an open file or directory; returns the watch's number. Raises OSError."""
        path = f"/proc/self/fd/{file}".encode()
        number: int = _libc.inotify_add_watch(self.fd, path, CHANGES | _ONLY_WHAT_IS_LINKED)
        if number < 0:
            raise _error()
        return number

    def remove(self, watch: int) -> None:
        """End a watch; one that has ended already is passed over."""
        _libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> Iterator[Event]:
        """Events that are there, a bounded number at once; raises OSError.

        Who makes them as fast as they are read must not keep the reader for ever.
        """
        for _ in range(_READS):
            try:
                data = os.read(self.fd, _BUFFER)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length
                yield Event(watch, mask, name)

    def close(self) -> None:
        """End all watches."""
        os.close(self.fd)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
