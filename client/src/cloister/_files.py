"""Bytes to and from a sandbox: one file at a time, atomic on either side, resumed after a loss."""

import contextlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._connection import Connection
from ._errors import (
    CallError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    call_error,
)
from ._models import Entry
from ._numbers import UINT32, whole
from ._places import local_errors
from ._silence import Lost, watched
from ._threads import finished
from ._uploading import Bytes, LocalFile, Sending

_CALL_SECONDS = 60.0
# Well below the time for which a call is repeated: one silent loss must not use it up.
_STAT_SECONDS = 10.0
_GATHERED = 1024 * 1024
_LEVELS = 64
"""Levels of directories that the server lists in one call."""
_CUTS = 10
MAX_ENTRIES = 1_000_000
MAX_LISTED = 512 * 1024 * 1024
"""Bytes of them together, as they are sent; a name is as long as a sandbox wants it."""
# A smaller file is not worth a question about what an earlier program has sent of it.
_RESUMED = 1024 * 1024

Write = Callable[[bytes], object]
Came = Callable[[int], object]
Entries = list[exec_pb2.Entry]
_Alive = Callable[[], None]


def _nothing(_: int) -> None:
    pass


class Files:
    """The Files service of one session."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def session_uid(self) -> str:
        """Of the session whose files these are."""
        return self._connection.info.uid

    async def stat(self, path: str) -> Entry:
        """Describe a path; raises NotFoundError, PermissionDeniedError."""
        return Entry.from_proto(await self.entry(path))

    async def list(self, path: str, depth: int) -> list[Entry]:
        """The entries of a directory, parents before children; depth 1 is its own."""
        return [
            Entry.from_proto(each) for each in await self.entries(path, whole("depth", depth, 1))
        ]

    async def entry(self, path: str) -> exec_pb2.Entry:
        """Like `stat`, with the etag."""

        async def attempt(channel: grpc.aio.Channel, _alive: _Alive) -> exec_pb2.Entry:
            request = exec_pb2.StatRequest(path=path)
            return await exec_pb2_grpc.FilesStub(channel).Stat(request, timeout=_STAT_SECONDS)

        return await self._connection.run(attempt)

    async def entries(self, path: str, depth: int | None = None) -> Entries:
        """Like `list`, with the etags; None is the whole tree, however deep it is."""
        found: Entries = []
        room = MAX_LISTED
        pending = [(path, 0)]
        while pending:
            folder, above = pending.pop()
            levels = _LEVELS if depth is None else min(_LEVELS, depth - above)
            try:
                listed, size = await self._listed(folder, levels, MAX_ENTRIES - len(found), room)
            except NotFoundError:
                if not above:
                    raise
                continue  # removed since it was seen
            found += listed
            room -= size
            deepest = max((each.path.count("/") for each in listed), default=0)
            shallow = min((each.path.count("/") for each in listed), default=0)
            if deepest - shallow + 1 < levels or (depth is not None and above + levels >= depth):
                continue
            pending += [
                (each.path, above + levels)
                for each in reversed(listed)
                if each.type == exec_pb2.Entry.TYPE_DIRECTORY
                and each.path.count("/") == deepest
                and "\ufffd" not in each.path  # such a name cannot be asked for
            ]
        return found

    async def _listed(self, path: str, levels: int, limit: int, room: int) -> tuple[Entries, int]:
        """The entries, and their bytes; raises FailedPreconditionError beyond either bound."""

        cuts = 0

        async def attempt(channel: grpc.aio.Channel, alive: _Alive) -> tuple[Entries, int]:
            nonlocal cuts
            cuts += 1
            if cuts > _CUTS:  # each begins at the first entry again: it is no progress
                raise call_error(
                    grpc.StatusCode.UNAVAILABLE, f"the list of {path} was cut {_CUTS} times"
                )
            request = exec_pb2.ListRequest(path=path, depth=levels)
            entries: Entries = []
            size = 0
            async for each in watched(exec_pb2_grpc.FilesStub(channel).List(request)):
                alive()
                entries.append(each)
                size += each.ByteSize()
                if len(entries) > limit or size > room:
                    most = (
                        f"{MAX_ENTRIES} entries" if size <= room else f"{MAX_LISTED} bytes of them"
                    )
                    raise FailedPreconditionError(
                        f"{path} has more than {most}", grpc.StatusCode.FAILED_PRECONDITION
                    )
            return entries, size

        return await self._connection.run(attempt, bulk=True)

    async def read(
        self,
        path: str,
        write: Write,
        *,
        offset: int = 0,
        etag: str = "",
        count: int | None = None,
        came: Came = _nothing,
    ) -> exec_pb2.Entry:
        """Hand a file's bytes to `write`, in order; returns what the file was.

        offset, etag: go on there, with this very file. count: so many at most; None is to its end.
        came: told, on the event loop, how far the bytes that were written reach. Raises
        DataLossError when the file changed meanwhile.
        """
        end = None if count is None else offset + count
        reading = _Reading(path, write, came, offset, etag, end=end)

        async def attempt(channel: grpc.aio.Channel, alive: _Alive) -> exec_pb2.Entry:
            # A server that does not know of it would send all of the file.
            if reading.offset or end is not None:
                await self._connection.require("files.resume")
            return await reading.attempt(channel, alive)

        try:
            entry = await self._connection.run(attempt, bulk=True)
        except CallError as error:
            if error.reason == "ETAG_MISMATCH":
                raise _changed(path) from None
            raise
        if (await self.entry(path)).etag != entry.etag:
            raise _changed(path)
        return entry

    async def read_bytes(self, path: str, first: int, count: int | None, limit: int) -> bytes:
        """Some bytes of a file, or all; see AsyncSession.read_bytes."""
        content = io.BytesIO()

        def keep(data: bytes) -> None:
            if content.tell() + len(data) > limit:
                raise FailedPreconditionError(
                    f"{path} has more than {limit} bytes", grpc.StatusCode.FAILED_PRECONDITION
                )
            content.write(data)

        await self.read(path, keep, offset=first, count=count)
        return content.getvalue()

    async def has(self, capability: str) -> bool:
        """Whether the exec server has an optional feature."""
        return capability in (await self._connection.server()).capabilities

    async def read_tree(self, path: str, write: Write, came: Came) -> bool:
        """Hand a directory to `write` as a tar stream; False: it was cut, or a file changed."""
        await self._connection.require("files.tree")
        reading = _Reading(path, write, came, 0, "", tree=True)
        begun = False

        async def attempt(channel: grpc.aio.Channel, alive: _Alive) -> bool:
            nonlocal begun
            if begun:  # such a stream cannot be gone on with
                return False
            begun = True
            await reading.attempt(channel, alive)
            return True

        try:
            return await self._connection.run(attempt, bulk=True)
        except DataLossError as error:
            if error.reason == "FILE_CHANGED":
                return False
            raise

    async def write(
        self,
        path: str,
        content: bytes,
        mode: int,
        *,
        if_etag: str = "",
        create_only: bool = False,
    ) -> Entry:
        """Write a file; it appears when the last byte has arrived."""
        start = exec_pb2.UploadStart(
            path=path,
            mode=whole("mode", mode, most=UINT32),
            if_etag=if_etag,
            create_only=create_only,
        )
        sending = Sending(self._connection, start, Bytes(io.BytesIO(content)), _nothing)
        return Entry.from_proto(await sending.run())

    async def write_tree(self, path: str, archive: BinaryIO) -> None:
        """Unpack a tar archive into a directory, when its last byte has arrived."""
        await self._connection.require("files.tree")
        start = exec_pb2.UploadStart(path=path, tree=True)
        await Sending(self._connection, start, Bytes(archive), _nothing).run()

    async def remove(self, path: str) -> None:
        """Remove a file; it may be gone already."""

        async def attempt(channel: grpc.aio.Channel, _alive: _Alive) -> None:
            request = exec_pb2.RemoveRequest(path=path)
            await exec_pb2_grpc.FilesStub(channel).Remove(request, timeout=_CALL_SECONDS)

        with contextlib.suppress(NotFoundError):
            await self._connection.run(attempt)

    async def upload(self, source: Path, path: str, sent: Came = _nothing) -> exec_pb2.Entry:
        """Copy a file of this machine, with its permission bits and time; raises LocalFileError."""
        with local_errors("read", source), LocalFile(source) as file:
            start = exec_pb2.UploadStart(path=path, mode=file.info.st_mode & 0o777)
            stamp = Timestamp()
            stamp.FromNanoseconds(max(0, file.info.st_mtime_ns))
            start.mtime.CopyFrom(stamp)
            if file.size >= _RESUMED:
                start.upload_id = file.upload_id(path)
            return await Sending(self._connection, start, file, sent).run()


class _Reading:
    """One download, over as many calls as it takes."""

    def __init__(
        self,
        path: str,
        write: Write,
        came: Came,
        offset: int,
        etag: str,
        *,
        end: int | None = None,
        tree: bool = False,
    ) -> None:
        self._path = path
        self._write = write
        self._came = came
        self.offset = offset
        self._etag = etag
        self._begin, self._wanted = offset, end
        self._tree = tree
        self._entry: exec_pb2.Entry | None = None
        self._gathered: list[bytes] = []
        self._size = 0

    async def attempt(self, channel: grpc.aio.Channel, alive: _Alive) -> exec_pb2.Entry:
        """Read from where the last attempt stopped; raises Lost when it is cut."""
        request = exec_pb2.DownloadRequest(
            path=self._path, offset=self.offset, if_etag=self._etag, tree=self._tree
        )
        if self._wanted is not None:
            if self.offset == self._wanted and self._entry is not None:
                return self._entry  # only the end of an earlier attempt was lost
            request.length = self._wanted - self.offset
        crc, complete, at = 0, False, self.offset
        try:
            async for each in watched(exec_pb2_grpc.FilesStub(channel).Download(request)):
                opened = self._entry is None
                if opened:
                    self._open(each)
                if complete or each.offset != at:
                    raise _wrong(f"{self._path}: bytes are out of order")
                if each.data:
                    alive()
                elif not (opened or each.HasField("crc32")):
                    raise _wrong(f"{self._path}: a piece without bytes")
                at += len(each.data)
                crc = zlib.crc32(each.data, crc)
                await self._take(each.data)
                if each.HasField("crc32"):
                    complete = True
                    if each.crc32 != crc:
                        raise _wrong(f"{self._path}: bytes were damaged on the way")
        finally:
            await self._flush()
        if not complete or self._entry is None:
            raise Lost("the exec server ended a download before its end")
        if not self._tree and at != self._end(self._entry):
            raise _changed(self._path)
        return self._entry

    def _end(self, entry: exec_pb2.Entry) -> int:
        """The offset behind the last byte that is to come; behind a file's end there are none."""
        end = entry.size if self._wanted is None else min(entry.size, self._wanted)
        return max(self._begin, end)

    def _open(self, first: exec_pb2.Chunk) -> None:
        if not first.HasField("entry") or (self._etag and first.entry.etag != self._etag):
            raise _wrong(f"{self._path}: the exec server does not say what it sends")
        self._entry = first.entry
        if not self._tree:
            self._etag = first.entry.etag

    async def _take(self, data: bytes) -> None:
        self._gathered.append(data)
        self._size += len(data)
        if self._entry and not self._tree and self.offset + self._size > self._end(self._entry):
            raise _changed(self._path)
        if self._size >= _GATHERED:
            await self._flush()

    async def _flush(self) -> None:
        """Also what came before a cut is kept: the next attempt goes on behind it."""
        gathered, self._gathered = self._gathered, []
        if gathered:
            data = b"".join(gathered)
            self._size = 0
            self.offset += len(data)
            await finished(lambda: self._write(data))
            self._came(self.offset)


def modified_ns(entry: exec_pb2.Entry) -> int:
    """When it was modified, in nanoseconds; a sandbox may say what is no time at all."""
    return entry.mtime.seconds * 10**9 + entry.mtime.nanos


def _wrong(message: str) -> CallError:
    return call_error(grpc.StatusCode.DATA_LOSS, message)


def _changed(path: str) -> CallError:
    return _wrong(f"{path} changed while it was read")
