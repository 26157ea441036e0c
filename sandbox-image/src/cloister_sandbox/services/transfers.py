"""The calls of cloister.exec.v1.Files that move many bytes."""

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from .. import trees, uploads
from ..entries import entry
from ..errors import Busy, CallError, Corrupt, InvalidField, Stale, WrongState
from ..failures import failed, open_file, require_etag, resolve, writable
from ..finishing import to_its_end
from ..lanes import Lanes
from ..paths import Roots
from ..state import Activity, ServerState
from ..threads import aside
from ..unpacking import check, unpack
from .common import MAX_ID, require_claimed, streaming, unary

_BATCH = 8
"""Pieces of a download that are read at once."""
_GATHERED = 1024 * 1024
"""Bytes of an upload that are written at once."""
MAX_STREAMS = 64
SWEEP_SECONDS = 60.0
"""How often uploads that nobody goes on with are looked at, while there are any."""


class _Gone(Exception):
    """Nobody waits any more for work that may take minutes."""


class Transfers(exec_pb2_grpc.FilesServicer):
    """Download and Upload; file I/O happens in the bulk lane, pieces of all transfers in turn."""

    def __init__(self, state: ServerState, roots: Roots, activity: Activity, lanes: Lanes) -> None:
        self._state = state
        self._roots = roots
        self._activity = activity
        self._lanes = lanes
        self._uploads = uploads.Uploads(roots)
        self._streams = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def _transfer(self) -> Iterator[None]:
        """A transfer, within the bound of those under way; raises Busy."""
        if self._streams >= MAX_STREAMS:
            why = f"{MAX_STREAMS} transfers are under way"
            raise Busy("TOO_MANY_TRANSFERS", why, 1.0, "transfers", MAX_STREAMS)
        self._streams += 1
        try:
            with self._activity:
                yield
        finally:
            self._streams -= 1

    @streaming
    async def Download(self, request: exec_pb2.DownloadRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        require_claimed(self._state)
        with self._transfer():
            if request.tree:
                fd, first = -1, await self._lanes.quick.run(self._describe_tree, request.path)
                resolved = await self._lanes.quick.run(resolve, self._roots, request.path)
                pieces = trees.tree_pieces(self._roots, request.path, resolved)
            else:
                fd, first = await self._lanes.quick.open(
                    lambda: self._open_file(request), lambda opened: os.close(opened[0])
                )
                pieces = trees.file_pieces(fd, request.offset, request.length)
            held = exec_pb2.Chunk(
                offset=0 if request.tree else request.offset, entry=first, crc32=0
            )
            begun = False
            try:
                async with contextlib.aclosing(self._lanes.bulk.batches(pieces, _BATCH)) as batches:
                    async for batch in batches:
                        for offset, data, crc in batch:
                            await self._state.pace.turn()
                            if begun:
                                held.ClearField("crc32")
                                yield held
                                held = exec_pb2.Chunk()
                            held.offset, held.data, held.crc32 = offset, data, crc
                            begun = True
            except OSError as error:
                raise failed(request.path, error) from None
            finally:
                if fd >= 0:
                    await _close(fd)
            yield held

    def _open_file(self, request: exec_pb2.DownloadRequest) -> tuple[int, exec_pb2.Entry]:
        fd, resolved = open_file(self._roots, request.path)
        try:
            info = os.fstat(fd)
            require_etag(request.if_etag, request.path, info)
        except CallError:
            os.close(fd)
            raise
        return fd, entry(resolved, info)

    def _describe_tree(self, path: str) -> exec_pb2.Entry:
        resolved = resolve(self._roots, path)
        try:
            fd = self._roots.directory(resolved)
        except OSError as error:
            raise failed(path, error) from None
        try:
            return entry(resolved, os.fstat(fd))
        finally:
            os.close(fd)

    @unary
    async def UploadState(self, request: exec_pb2.UploadStateRequest, context: Any) -> Any:  # noqa: ARG002, N802
        require_claimed(self._state)
        return exec_pb2.UploadStateResponse(offset=self._uploads.state(request.upload_id))

    @unary
    async def Upload(self, request: AsyncIterator[exec_pb2.UploadFrame], context: Any) -> Any:  # noqa: ARG002, N802
        preparing = bool(self._state.awaits)
        if not preparing:
            require_claimed(self._state)
        with self._transfer():
            first = await anext(request, None)
            if first is None or not first.HasField("start"):
                raise InvalidField("start", "must be the first frame")
            start = first.start
            if preparing and not (start.tree and start.path in self._state.awaits):
                require_claimed(self._state)
            _check_start(start)
            stream = object()
            try:
                upload = await self._begin(start, stream)
                made = await self._receive(upload, stream, request)
            except OSError as error:
                raise failed(start.path, error) from None
            if preparing:
                self._state.awaits.discard(start.path)
                self._state.arrived.set()
            return made

    async def _begin(self, start: exec_pb2.UploadStart, stream: object) -> uploads.Upload:
        """The upload that a stream is to write, now its own; raises CallError and OSError."""
        target = await self._lanes.quick.run(writable, self._roots, start.path)
        if not start.tree and self._roots.is_root(target):
            raise InvalidField("start.path", "must name a file")
        upload = self._uploads.find(start)
        if upload is None:
            if start.offset:
                raise _wrong_offset(start.upload_id, 0)
            made = await self._lanes.bulk.open(
                lambda: self._uploads.create(start, target), uploads.Upload.discard
            )
            try:
                # Another stream may have begun the same upload meanwhile.
                upload = self._uploads.find(start)
                dropped = [made] if upload else self._uploads.keep(made)
            except CallError:
                await self._discard(made)
                raise
            if upload is None:
                async with self._owning(made, stream, keep=False):
                    self._sweep_later()
                    await self._discard(*dropped)
                return made
            await self._discard(*dropped)
        async with self._owning(upload, stream, keep=True):
            with contextlib.suppress(OSError):
                await _settled(upload)
        if start.offset != upload.size:
            await self._let_go(upload, stream, keep=True)
            raise _wrong_offset(upload.start.upload_id, upload.size)
        return upload

    @contextlib.asynccontextmanager
    async def _owning(
        self, upload: uploads.Upload, stream: object, *, keep: bool
    ) -> AsyncIterator[None]:
        """The upload is the stream's from here on, unless this fails or its caller goes away."""
        upload.stream = stream
        try:
            yield
        except BaseException:
            await to_its_end(self._let_go(upload, stream, keep=keep))
            raise

    async def _receive(
        self, upload: uploads.Upload, stream: object, frames: AsyncIterator[exec_pb2.UploadFrame]
    ) -> exec_pb2.Entry:
        keep = bool(upload.start.upload_id)
        try:
            end = await self._write(upload, stream, frames)
        except BaseException as error:
            keep = keep and not isinstance(error, InvalidField)
            await to_its_end(self._let_go(upload, stream, keep=keep))
            raise
        gone = threading.Event()
        try:
            # What has arrived whole is carried through also when the caller goes away now; only a
            # tree stops, where its upload goes on when it comes again.
            return await to_its_end(self._finish(upload, stream, end, gone))
        finally:
            gone.set()

    async def _write(
        self, upload: uploads.Upload, stream: object, frames: AsyncIterator[exec_pb2.UploadFrame]
    ) -> exec_pb2.UploadEnd:
        """Write all data frames; returns the last frame. Receives while it writes."""
        gathered: list[bytes] = []
        size = 0
        try:
            async for frame in frames:
                await self._state.pace.turn()
                if frame.HasField("data"):
                    gathered.append(frame.data)
                    size += len(frame.data)
                    if size >= _GATHERED:
                        pieces, gathered, size = gathered, [], 0
                        await self._append(upload, stream, pieces)
                elif frame.HasField("end"):
                    return frame.end
                else:
                    raise InvalidField("start", "must be sent once, first")
            raise Corrupt("NO_END", "the upload ended before its end frame")
        finally:
            # Also what arrived before a stream was cut is kept: the next one goes on behind it.
            await to_its_end(self._append(upload, stream, gathered))
            await _settled(upload)

    async def _append(self, upload: uploads.Upload, stream: object, pieces: list[bytes]) -> None:
        """Start writing once the write before it has ended; raises what that one raised."""
        await _settled(upload)
        if upload.stream is not stream:
            why = "another stream goes on with this upload"
            raise Stale("SUPERSEDED", why, upload_id=upload.start.upload_id)
        if upload.sealed and pieces:
            raise _wrong_offset(upload.start.upload_id, upload.size)
        if pieces:
            upload.writing = self._lanes.bulk.submit(lambda: upload.append(pieces))

    async def _finish(
        self,
        upload: uploads.Upload,
        stream: object,
        end: exec_pb2.UploadEnd,
        gone: threading.Event,
    ) -> exec_pb2.Entry:
        keep = bool(upload.start.upload_id)
        upload.finishing += 1
        async with upload.lock:
            try:
                upload.verify(end)
                if upload.done is None:
                    upload.sealed = True
                    upload.done = await self._place(upload, gone)
                return upload.done
            except CallError:
                keep = False
                raise
            except OSError:
                upload.sealed = False  # with room on the disk it can be finished yet
                raise
            finally:
                upload.finishing -= 1
                await self._let_go(upload, stream, keep=keep)

    async def _place(self, upload: uploads.Upload, gone: threading.Event) -> exec_pb2.Entry:
        if upload.start.tree:
            return await self._lanes.slow.run(self._unpack, upload, gone)
        return await self._lanes.bulk.run(self._uploads.place, upload)

    async def _let_go(self, upload: uploads.Upload, stream: object, *, keep: bool) -> None:
        """A stream's end: the upload waits for the next one, or is forgotten."""
        if upload.stream is not stream:
            # Whoever took it over may have left before it was done.
            if upload.stream is None and upload.done is not None:
                await self._discard(upload)
            return
        upload.stream = None
        upload.touched = time.monotonic()
        if upload.finishing:
            return  # a stream before this one has its bytes take their name, and lets it go then
        if not keep:
            self._uploads.forget(upload)
        if upload.done is not None or not keep:
            with contextlib.suppress(OSError):
                await _settled(upload)
            await self._discard(upload)

    def _unpack(self, upload: uploads.Upload, gone: threading.Event) -> exec_pb2.Entry:
        def going() -> None:
            if gone.is_set():
                raise _Gone

        self._uploads.check(upload.start, upload.target)
        if not upload.unpacked[1]:
            check(upload.fd, upload.size, going)
        with self._roots.parent(f"{upload.target}/any", create=True) as (directory, _):
            info = os.fstat(directory)
            where, written = (info.st_dev, info.st_ino), 0
            if upload.unpacked[0] == where:
                written = upload.unpacked[1]
            try:
                for _ in unpack(upload.fd, upload.size, directory, going, skip=written):
                    written += 1
                    upload.unpacked = where, written
            except OSError as error:
                raise failed(f"{upload.start.path}/{error.filename}", error) from None
            return entry(upload.target, os.fstat(directory))

    def _sweep_later(self) -> None:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._expire)

    def _expire(self) -> None:
        self._sweep = None
        self._sweeping = asyncio.create_task(self._discard(*self._uploads.expire()))
        if self._uploads.all():
            self._sweep_later()

    async def _discard(self, *unwanted: uploads.Upload) -> None:
        """Whether the caller stays or not: what waits for its turn would be taken back."""
        await to_its_end(self._discard_all(unwanted))

    async def _discard_all(self, unwanted: Iterable[uploads.Upload]) -> None:
        for each in unwanted:
            await self._lanes.bulk.give_back(each.discard)

    async def close(self) -> None:
        """Forget interrupted uploads with the bytes that arrived."""
        if self._sweep is not None:
            self._sweep.cancel()
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping])
        for each in self._uploads.all():
            self._uploads.forget(each)
            await self._discard(each)


async def _close(fd: int) -> None:
    """Close a file. One that a tool has removed meanwhile goes with that, which may take long."""
    if os.fstat(fd).st_nlink:
        os.close(fd)
        return
    closing = aside(functools.partial(os.close, fd))
    if closing is not None:
        await asyncio.shield(asyncio.wrap_future(closing))


def _check_start(start: exec_pb2.UploadStart) -> None:
    if start.mode > 0o777:
        raise InvalidField("start.mode", "must be permission bits, at most 0777")
    if len(start.upload_id) > MAX_ID:
        raise InvalidField("start.upload_id", f"must have at most {MAX_ID} characters")
    if start.offset and not start.upload_id:
        raise InvalidField("start.offset", "needs an upload_id")
    if start.tree and (start.mode or start.if_etag or start.create_only):
        raise InvalidField("start.tree", "goes without mode, if_etag and create_only")


def _wrong_offset(upload_id: str, offset: int) -> CallError:
    why = f"{offset} bytes of this upload have arrived"
    return WrongState("OFFSET_MISMATCH", why, upload_id=upload_id, offset=str(offset))


async def _settled(upload: uploads.Upload) -> None:
    """Wait for the write under way; raises OSError when it failed."""
    writing = upload.writing
    if writing is None:
        return
    try:
        await asyncio.shield(writing)
    except OSError:
        upload.writing = None  # told once: the next stream goes on behind what was written
        raise
