"""Sending bytes to a sandbox: what was cut goes on where it stopped, nothing is written twice."""

import asyncio
import contextlib
import hashlib
import io
import os
import threading
import uuid
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import grpc

from cloister_api.cancelling import being_cancelled
from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._connection import Connection
from ._errors import CallError, LocalFileError
from ._silence import Lost
from ._threads import finished

# With TLS, larger frames cost less per byte; larger reads come quicker from the disk.
_FRAME = 512 * 1024
_READ = 1024 * 1024
# Well below the time for which a call is repeated: one silent loss must not use it up.
_CALL_SECONDS = 10.0
# Without progress: a server may be busy with its disk, but not for so long.
STALL_SECONDS = 300.0
# Nothing tells how far a server is with what has arrived: unpacking a tree, or copying a file to
# another disk, takes the longer the more there is.
SLOWEST = 1024 * 1024
"""Bytes that it does in a second at least."""
_STARTS = 4
"""How often an upload begins anew because another one got in its way."""

Sent = Callable[[int], object]
_Alive = Callable[[], None]


class Source(Protocol):
    """Bytes that can be read from anywhere, again and again."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """At most so many bytes; raises LocalFileError and OSError."""

    def check(self) -> None:
        """Raise LocalFileError unless the bytes are still those of the beginning."""


class Bytes:
    """Bytes in memory or in a file that nobody else writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """At most so many bytes."""
        self._file.seek(offset)
        return self._file.read(length)

    def check(self) -> None:
        """They do not change."""


class LocalFile:
    """A file of this machine, which somebody may write meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.info = os.fstat(self._fd)
        self.size = self.info.st_size

    def read(self, offset: int, length: int) -> bytes:
        """At most so many bytes, never those behind the size it had."""
        data = os.pread(self._fd, min(length, self.size - offset), offset)
        if not data and offset < self.size:
            raise self._changed()
        return data

    def check(self) -> None:
        """Raise LocalFileError when it was written since it was opened."""
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.info.st_mtime_ns):
            raise self._changed()

    def upload_id(self, target: str) -> str:
        """The same for the same file as long as it is not written, also in another process."""
        facts = f"{self.size} {self.info.st_mtime_ns} {self.info.st_mode} {target}"
        return "cp-" + hashlib.blake2b(os.fsencode(facts), digest_size=20).hexdigest()

    def _changed(self) -> LocalFileError:
        return LocalFileError(f"{self._path} changed while it was read")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Sending:
    """One upload, from its first byte to the answer."""

    def __init__(
        self,
        connection: Connection,
        start: exec_pb2.UploadStart,
        source: Source,
        sent: Sent,
    ) -> None:
        self._connection = connection
        self._start = start
        self._source = source
        self._sent = sent
        # Whether the server may know the id already.
        self._begun = bool(start.upload_id)
        self._foreign = self._begun
        self._crc = self._hashed = 0
        # The last attempt's read may not have ended when the next one begins.
        self._reading = threading.Lock()
        self._furthest = -1
        self._stopped: Exception | None = None
        if not start.upload_id:
            self._start_anew()

    async def run(self) -> exec_pb2.Entry:
        """Send; raises LocalFileError, OSError and CallError."""
        whole = self._foreign and (
            await self._connection.run(self._state, bulk=True) >= self._source.size
        )
        for left in reversed(range(_STARTS)):
            try:
                entry = await self._connection.run(self._attempt, bulk=True)
            except CallError as error:
                # Only what an earlier program left can make bytes wrong that are right here.
                lost = error.code is grpc.StatusCode.DATA_LOSS and self._foreign
                if not left or not (lost or error.reason in _IN_THE_WAY):
                    raise
                if error.reason != "OFFSET_MISMATCH":
                    self._start_anew()
                continue
            # The server remembers what it has finished and answers without writing, though the
            # file may have been changed or removed in the sandbox since.
            if whole and self._foreign and await self._connection.run(self._etag) != entry.etag:
                self._start_anew()
                continue
            return entry
        raise AssertionError("unreachable")

    async def _etag(self, channel: grpc.aio.Channel, _alive: _Alive) -> str:
        """Of what is at the target now; empty for nothing."""
        request = exec_pb2.StatRequest(path=self._start.path)
        try:
            found = await exec_pb2_grpc.FilesStub(channel).Stat(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return ""
            raise
        return found.etag

    async def _state(self, channel: grpc.aio.Channel, _alive: _Alive) -> int:
        request = exec_pb2.UploadStateRequest(upload_id=self._start.upload_id)
        stub = exec_pb2_grpc.FilesStub(channel)
        try:
            return (await stub.UploadState(request, timeout=_CALL_SECONDS)).offset
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._start_anew()  # without `files.resume` every attempt sends all of it
            return 0

    def _start_anew(self) -> None:
        self._start.upload_id = uuid.uuid4().hex
        self._begun = self._foreign = False

    async def _attempt(self, channel: grpc.aio.Channel, alive: _Alive) -> exec_pb2.Entry:
        offset = await self._state(channel, alive) if self._begun else 0
        if offset > self._source.size:
            self._start_anew()
            offset = 0
        self._begun = True
        try:
            # What a server says it has is hashed from our own bytes: theirs must be the same.
            while self._hashed < offset:
                await self._read(self._hashed, offset - self._hashed)
            return await self._send(exec_pb2_grpc.FilesStub(channel), offset, alive)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            if self._stopped is not None and not being_cancelled():
                raise self._stopped from None
            raise

    async def _send(self, stub: Any, offset: int, alive: _Alive) -> exec_pb2.Entry:
        """Send from an offset on; raises Lost when the server takes nothing for too long."""
        try:
            async with asyncio.timeout(STALL_SECONDS) as patience:
                sent: exec_pb2.Entry = await stub.Upload(self._frames(offset, alive, patience))
                return sent
        except TimeoutError:
            raise Lost("the exec server takes no more of an upload") from None

    async def _frames(
        self, offset: int, alive: _Alive, patience: asyncio.Timeout
    ) -> AsyncIterator[exec_pb2.UploadFrame]:
        start = exec_pb2.UploadStart()
        start.CopyFrom(self._start)
        start.offset = offset
        yield exec_pb2.UploadFrame(start=start)
        try:
            while offset < self._source.size:
                data = await self._read(offset, _READ)
                for at in range(0, len(data), _FRAME):
                    yield exec_pb2.UploadFrame(data=data[at : at + _FRAME])
                    _wait_again(patience, STALL_SECONDS)
                offset += len(data)
                if offset > self._furthest:  # the server takes bytes that it never had before
                    self._furthest = offset
                    alive()
                self._sent(offset)
            await asyncio.to_thread(self._source.check)
        except Exception as error:
            # gRPC would only cancel the call. Without the end nothing is written.
            self._stopped = error
            return
        _wait_again(patience, STALL_SECONDS + self._source.size / SLOWEST)
        end = exec_pb2.UploadEnd(size=self._source.size, crc32=self._crc)
        yield exec_pb2.UploadFrame(end=end)

    async def _read(self, offset: int, length: int) -> bytes:
        def read() -> bytes:
            with self._reading:
                return self._read_now(offset, min(length, _READ))

        return await finished(read)

    def _read_now(self, offset: int, length: int) -> bytes:
        data = self._source.read(offset, length)
        if not data:
            raise LocalFileError("a file of this machine ended while it was read")
        end = offset + len(data)
        if offset <= self._hashed < end:
            self._crc = zlib.crc32(memoryview(data)[self._hashed - offset :], self._crc)
            self._hashed = end
        return data


def _wait_again(patience: asyncio.Timeout, seconds: float) -> None:
    """From now on for so many seconds."""
    with contextlib.suppress(RuntimeError):  # the call has ended meanwhile
        patience.reschedule(asyncio.get_running_loop().time() + seconds)


_IN_THE_WAY = ("OFFSET_MISMATCH", "SUPERSEDED", "ID_CONFLICT")
