"""A file for what memory does not keep of a long output."""

import array
import asyncio
import bisect
import functools
import os
import tempfile
from collections.abc import Callable

from .threads import aside

DIRECTORY = "/tmp"  # noqa: S108 - the file has no name there
TOTAL = 1024 * 1024 * 1024
"""Bytes in the files of all spools together."""


def nameless() -> int:
    """A new file that nothing else can find; raises OSError."""
    with tempfile.TemporaryFile(dir=DIRECTORY, buffering=0) as file:
        return os.dup(file.fileno())


class Spool:
    """A range of bytes that grows at its end until it is full; what comes later is dropped."""

    occupied = 0

    def __init__(self, limit: int, max_runs: int, open_file: Callable[[], int] = nameless) -> None:
        self._open = open_file
        self._limit = limit
        self._max_runs = max_runs
        self._fd = -1
        self._late: list[bytes] = []
        self._written = 0
        # Numbers, not objects: a program can make every byte a run of its own.
        self._begins = array.array("Q")
        self._streams = bytearray()
        self._using = 0
        self._closed = False
        self.start = 0
        self.length = 0
        self.full = limit == 0

    @property
    def late(self) -> int:
        """Bytes that wait to be written."""
        return 0 if self._closed else self.length - self._written

    @property
    def size(self) -> int:
        """Bytes that this spool occupies."""
        return 0 if self._closed else self.length

    def takes(self, more: int) -> bool:
        """Whether so many more bytes fit."""
        room = min(self._limit - self.length, TOTAL - Spool.occupied)
        return not self.full and room >= more and len(self._begins) < self._max_runs

    def add(self, offset: int, stream: int, data: bytes) -> None:
        """Append bytes, which begin where the last ones ended; `write` puts them into the file."""
        if self.full:
            return
        if not self._begins:
            self.start = offset
        room = min(self._limit - self.length, TOTAL - Spool.occupied)
        if room < len(data) or len(self._begins) >= self._max_runs:
            self.full = True
            data = data[: max(0, room)]
        if not data:
            return
        if not self._begins or self._streams[-1] != stream:
            self._begins.append(offset)
            self._streams.append(stream)
        self._late.append(data)
        self.length += len(data)
        Spool.occupied += len(data)

    async def write(self) -> None:
        """Write what is late; where that fails, the spool is full."""
        batch = list(self._late)
        self._using += 1
        try:
            written = await asyncio.to_thread(self._write, batch, self._written)
        finally:
            self._release()
        if self._closed:
            return
        if written:
            self._written += sum(map(len, batch))
            del self._late[: len(batch)]
        else:
            self.full = True
            Spool.occupied -= self.late
            self.length = self._written
            self._late.clear()

    async def read(self, offset: int, most: int) -> tuple[int, bytes] | None:
        """Stream and bytes from an offset on, at most so many; None outside the range."""
        place = offset - self.start
        if self._closed or not 0 <= place < self.length or not self._begins:
            return None
        index = bisect.bisect_right(self._begins, offset) - 1
        stream = self._streams[index]
        if index + 1 < len(self._begins):
            most = min(most, self._begins[index + 1] - offset)
        if place >= self._written:
            return stream, self._waiting(place - self._written, most)
        most = min(most, self._written - place)
        self._using += 1
        try:
            data = await asyncio.to_thread(os.pread, self._fd, most, place)
        finally:
            self._release()
        return (stream, data) if data else None

    def close(self) -> None:
        """Give the room back."""
        if not self._closed:
            self._closed = True
            self.full = True
            Spool.occupied -= self.length
            self._late.clear()
            self._using += 1
            self._release()

    def _waiting(self, skip: int, most: int) -> bytes:
        for each in self._late:
            if skip < len(each):
                return each[skip : skip + most]
            skip -= len(each)
        return b""

    def _write(self, batch: list[bytes], place: int) -> bool:
        try:
            if self._fd < 0:
                self._fd = self._open()
            view = memoryview(b"".join(batch))
            while view:
                done = os.pwrite(self._fd, view, place)
                view, place = view[done:], place + done
        except (OSError, MemoryError):
            return False
        return True

    def _release(self) -> None:
        """Close the file when it is neither wanted nor in use by a thread."""
        self._using -= 1
        if self._closed and not self._using and self._fd >= 0:
            if self._open is nameless:
                os.close(self._fd)
            else:
                # Tools may have changed it, and taken its name away: then it goes with this.
                aside(functools.partial(os.close, self._fd))
            self._fd = -1
