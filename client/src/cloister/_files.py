"""Bytes to and from a sandbox: one file at a time, atomic on either side, resumed after a loss."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._connection import Connection, watched
from ._errors import LocalFileError, call_error
from ._models import Entry

_CHUNK = 256 * 1024
_CALL_SECONDS = 60.0

_Alive = Callable[[], None]


class Files:
    """The Files service of one session."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def stat(self, path: str) -> Entry:
        """Describe a path; raises NotFoundError, PermissionDeniedError."""

        async def attempt(channel: grpc.aio.Channel, _alive: _Alive) -> Entry:
            request = exec_pb2.StatRequest(path=path)
            stub = exec_pb2_grpc.FilesStub(channel)
            return Entry.from_proto(await stub.Stat(request, timeout=_CALL_SECONDS))

        return await self._connection.run(attempt)

    async def list(self, path: str, depth: int) -> list[Entry]:
        """The entries of a directory, parents before children; depth 1 is its own."""

        async def attempt(channel: grpc.aio.Channel, alive: _Alive) -> list[Entry]:
            request = exec_pb2.ListRequest(path=path, depth=depth)
            entries = []
            async for each in watched(exec_pb2_grpc.FilesStub(channel).List(request)):
                alive()
                entries.append(Entry.from_proto(each))
            return entries

        return await self._connection.run(attempt)

    async def read(self, path: str, write: Callable[[bytes], object]) -> Entry:
        """Hand a file's bytes to `write`, in order; returns what the file was.

        Raises DataLossError when the file changed meanwhile.
        """
        before = await self.stat(path)
        offset = 0

        async def attempt(channel: grpc.aio.Channel, alive: _Alive) -> None:
            nonlocal offset
            request = exec_pb2.DownloadRequest(path=path, offset=offset)
            async for each in watched(exec_pb2_grpc.FilesStub(channel).Download(request)):
                alive()
                if each.offset != offset:
                    raise call_error(grpc.StatusCode.DATA_LOSS, f"{path}: bytes are out of order")
                await asyncio.to_thread(write, each.data)
                offset += len(each.data)

        await self._connection.run(attempt)
        after = await self.stat(path)
        # A link is followed by the download and not by the description: its size says nothing.
        changed = after != before or (before.type == "file" and offset != before.size)
        if changed:
            raise call_error(grpc.StatusCode.DATA_LOSS, f"{path} changed while it was read")
        return before

    async def write(self, path: str, source: BinaryIO, mode: int) -> Entry:
        """Write a file from the start of `source`; it appears when the last byte has arrived."""

        unreadable: OSError | None = None

        async def frames() -> AsyncIterator[exec_pb2.UploadFrame]:
            nonlocal unreadable
            yield exec_pb2.UploadFrame(start=exec_pb2.UploadStart(path=path, mode=mode))
            size = 0
            try:
                await asyncio.to_thread(source.seek, 0)
                while data := await asyncio.to_thread(source.read, _CHUNK):
                    size += len(data)
                    yield exec_pb2.UploadFrame(data=data)
            except OSError as error:
                # gRPC would only say that its input failed. Without the end nothing is written.
                unreadable = error
                return
            yield exec_pb2.UploadFrame(end=exec_pb2.UploadEnd(size=size))

        async def attempt(channel: grpc.aio.Channel, _alive: _Alive) -> Entry:
            stub = exec_pb2_grpc.FilesStub(channel)
            try:
                return Entry.from_proto(await stub.Upload(frames()))
            except grpc.aio.AioRpcError:
                if unreadable is not None:
                    raise unreadable from None
                raise

        return await self._connection.run(attempt)

    async def download(self, path: str, target: Path) -> None:
        """Copy a file to this machine, with its permission bits; raises LocalFileError."""
        try:
            with _replacing(target) as (file, partial):
                entry = await self.read(path, file.write)
                partial.chmod(entry.mode if entry.type == "file" else 0o644)
        except OSError as error:
            raise LocalFileError(f"cannot write {target}: {error.strerror or error}") from None

    async def upload(self, source: Path, path: str) -> None:
        """Copy a file of this machine, with its permission bits; raises LocalFileError."""
        try:
            with source.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                await self.write(path, file, mode)
        except OSError as error:
            raise LocalFileError(f"cannot read {source}: {error.strerror or error}") from None


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside the target that takes its place when all went well."""
    fd, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".partial"
    )
    partial = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file, partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
