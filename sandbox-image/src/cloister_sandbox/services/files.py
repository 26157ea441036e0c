"""cloister.exec.v1.Files."""

import asyncio
import contextlib
import itertools
import os
import secrets
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ..errors import CallError, Corrupt, Forbidden, InvalidField, NotFound, WrongState
from ..paths import Roots, ToolFailure, reason
from ..state import Activity, ServerState
from .common import require_claimed, streaming, unary

CHUNK = 65_536
MAX_DEPTH = 64


class FilesService(exec_pb2_grpc.FilesServicer):
    """Bytes in and out of the permitted directories."""

    def __init__(self, state: ServerState, roots: Roots, activity: Activity) -> None:
        self._state = state
        self._roots = roots
        self._activity = activity

    @unary
    async def Stat(self, request: exec_pb2.StatRequest, context: Any) -> Any:  # noqa: ARG002, N802
        require_claimed(self._state)
        with self._activity:
            return await asyncio.to_thread(self._stat, request.path)

    @streaming
    async def List(self, request: exec_pb2.ListRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        require_claimed(self._state)
        depth = request.depth or 1
        if depth > MAX_DEPTH:
            raise InvalidField("depth", f"must be at most {MAX_DEPTH}")
        with self._activity:
            root = self._resolve(request.path)
            walk = _walk(root, depth)
            try:
                while batch := await asyncio.to_thread(_take, walk, 256):
                    for entry in batch:
                        yield entry
            except OSError as error:
                raise _failed(request.path, error) from None

    @streaming
    async def Download(self, request: exec_pb2.DownloadRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        require_claimed(self._state)
        with self._activity:
            fd = await asyncio.to_thread(self._open, request.path, os.O_RDONLY)
            try:
                offset = request.offset
                while data := await asyncio.to_thread(os.pread, fd, CHUNK, offset):
                    yield exec_pb2.Chunk(offset=offset, data=data)
                    offset += len(data)
            finally:
                os.close(fd)

    @unary
    async def Upload(self, request: AsyncIterator[exec_pb2.UploadFrame], context: Any) -> Any:  # noqa: ARG002, N802
        require_claimed(self._state)
        with self._activity:
            return await self._upload(request)

    async def _upload(self, frames: AsyncIterator[exec_pb2.UploadFrame]) -> exec_pb2.Entry:
        first = await anext(frames, None)
        if first is None or not first.HasField("start"):
            raise InvalidField("start", "must be the first frame")
        start = first.start
        if start.mode > 0o777:
            raise InvalidField("start.mode", "must be permission bits, at most 0777")
        try:
            target = self._roots.writable("upload", start.path)
        except ToolFailure as failure:
            raise Forbidden("PATH_REFUSED", str(failure), path=start.path) from None
        if target in map(os.path.realpath, (self._roots.workspace, *self._roots.others)):
            raise InvalidField("start.path", "must name a file")
        partial = f"{target}.{secrets.token_hex(6)}.partial"
        complete = False
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            fd = await asyncio.to_thread(self._roots.open, partial, flags, 0o600)
            try:
                size = await _receive(frames, fd)
                await asyncio.to_thread(os.fchmod, fd, start.mode or 0o644)
                await asyncio.to_thread(self._rename, partial, target)
                complete = True
            finally:
                os.close(fd)
                if not complete:
                    self._remove(partial)
        except OSError as error:
            raise _failed(start.path, error) from None
        entry = await asyncio.to_thread(_entry, target)
        if entry.size != size:
            raise Corrupt("SIZE_CHANGED", "the file changed while it was written")
        return entry

    def _rename(self, partial: str, target: str) -> None:
        with self._roots.parent(partial) as (directory, name):
            os.rename(name, Path(target).name, src_dir_fd=directory, dst_dir_fd=directory)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError), self._roots.parent(path) as (directory, name):
            os.unlink(name, dir_fd=directory)

    def _resolve(self, path: str) -> str:
        try:
            return self._roots.resolve("path", path)
        except ToolFailure as failure:
            raise Forbidden("PATH_REFUSED", str(failure), path=path) from None

    def _open(self, path: str, flags: int) -> int:
        def complain(why: str) -> CallError:
            kind = NotFound if why == "no such file or directory" else WrongState
            return kind("CANNOT_OPEN", f"{path}: {why}", path=path)

        return self._roots.open_regular(self._resolve(path), flags, complain)

    def _stat(self, path: str) -> exec_pb2.Entry:
        try:
            return _entry(self._resolve(path))
        except OSError as error:
            raise _failed(path, error) from None


async def _receive(frames: AsyncIterator[exec_pb2.UploadFrame], fd: int) -> int:
    """Write all data frames; returns the size, which the last frame must confirm."""
    size = 0
    async for frame in frames:
        if frame.HasField("data"):
            await asyncio.to_thread(_write_all, fd, frame.data)
            size += len(frame.data)
        elif frame.HasField("end"):
            if frame.end.size != size:
                raise Corrupt(
                    "SIZE_MISMATCH", f"{size} bytes arrived, {frame.end.size} were announced"
                )
            return size
        else:
            raise InvalidField("start", "must be sent once, first")
    raise Corrupt("NO_END", "the upload ended before its end frame")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _failed(path: str, error: OSError) -> CallError:
    why = reason(error)
    if isinstance(error, FileNotFoundError):
        return NotFound("NOT_FOUND", f"{path}: {why}", path=path)
    if isinstance(error, PermissionError):
        return Forbidden("PERMISSION_DENIED", f"{path}: {why}", path=path)
    return WrongState("FILE_ERROR", f"{path}: {why}", path=path)


def _entry(path: str) -> exec_pb2.Entry:
    """Describe a path, not following a link at its end; raises OSError."""
    info = Path(path).lstat()
    kind = exec_pb2.Entry.TYPE_OTHER
    if stat.S_ISREG(info.st_mode):
        kind = exec_pb2.Entry.TYPE_FILE
    elif stat.S_ISDIR(info.st_mode):
        kind = exec_pb2.Entry.TYPE_DIRECTORY
    elif stat.S_ISLNK(info.st_mode):
        kind = exec_pb2.Entry.TYPE_SYMLINK
    entry = exec_pb2.Entry(
        path=path.encode("utf-8", errors="replace").decode("utf-8"),
        type=kind,
        size=info.st_size,
        mode=stat.S_IMODE(info.st_mode),
    )
    entry.mtime.FromNanoseconds(info.st_mtime_ns)
    if kind == exec_pb2.Entry.TYPE_SYMLINK:
        target = str(Path(path).readlink())
        entry.symlink_target = target.encode("utf-8", errors="replace").decode("utf-8")
    return entry


def _walk(root: str, depth: int) -> Iterator[exec_pb2.Entry]:
    """Entries below root, parents before children; links are described, not followed."""
    for each in sorted(os.scandir(root), key=lambda entry: entry.name):
        yield _entry(each.path)
        if depth > 1 and each.is_dir(follow_symlinks=False):
            yield from _walk(each.path, depth - 1)


def _take(walk: Iterator[exec_pb2.Entry], count: int) -> list[exec_pb2.Entry]:
    return list(itertools.islice(walk, count))
