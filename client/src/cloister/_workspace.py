"""Files of a session for programs: text with etags, searches, moves and watches."""

import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._connection import Connection
from ._errors import FailedPreconditionError, UnavailableError, call_error
from ._file_results import (
    Change,
    EditResult,
    GlobResult,
    GrepLine,
    GrepResult,
    Replacement,
    TextSlice,
)
from ._models import Entry
from ._numbers import UINT32, duration, whole
from ._silence import Lost, watched

# Well below the time for which a call is repeated: one silent loss must not use it up.
_QUICK_SECONDS = 10.0
# What looks through many files or a large one has a minute in the server.
_LONG_SECONDS = 90.0
_GREP_SECONDS = 30.0
_GREP_BYTES = 64 * 1024 * 1024
"""Of all lines together; there are at most 100,000."""
# Three times the time between the server's heartbeats.
_SILENCE_SECONDS = 30.0
_Alive = Callable[[], None]


class AsyncFiles:
    """Files of a session for programs, from AsyncSession.files; do not make one yourself.

    Paths are relative to /workspace, or absolute and below what tools may use. Methods raise
    NotFoundError, PermissionDeniedError outside of it, FailedPreconditionError for what is no text
    or no file, and UnimplementedError (NO_CAPABILITY) where the sandbox's image is too old.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read_text(
        self, path: str, *, first: int = 1, last: int | None = None, max_bytes: int = 262_144
    ) -> TextSlice:
        """Lines `first` to `last` of a text file, counted from 1; None is to its end.

        max_bytes: of the text at most; up to 1,048,576.
        """
        request = exec_pb2.ReadTextRequest(
            path=path,
            start_line=whole("first", first, 1),
            # 0 would mean another thing to the server, as of max_bytes.
            end_line=0 if last is None else whole("last", last, 1),
            max_bytes=whole("max_bytes", max_bytes, 1),
        )
        return TextSlice.from_proto(
            await self._call(lambda stub: stub.ReadText, request, _LONG_SECONDS)
        )

    async def edit(
        self,
        path: str,
        edits: Sequence[Replacement],
        *,
        if_etag: str = "",
        request_id: str | None = None,
    ) -> EditResult:
        """Replace strings in a text file, one after the other: all of them, or none.

        if_etag: of TextSlice or Entry; FailedPreconditionError (ETAG_MISMATCH) when the file is
        another by now. request_id: the same id with the same edits answers with what the first one
        did, for ten minutes; None chooses one. Raises OutcomeUnknownError when after a lost
        connection another server answers, which does not know the id.
        """
        request = exec_pb2.EditRequest(
            path=path, if_etag=if_etag, request_id=request_id or uuid.uuid4().hex
        )
        for each in edits:
            request.edits.add(old_string=each.old, new_string=each.new, replace_all=each.everywhere)
        await self._connection.require("files.edit")
        return EditResult.from_proto(
            await self._call(lambda stub: stub.Edit, request, _LONG_SECONDS, once=True)
        )

    async def glob(self, pattern: str, path: str = "", *, limit: int = 200) -> GlobResult:
        """Find files by a pattern such as `**/*.py` below a directory; empty is /workspace.

        limit: of the entries, up to 10,000.
        """
        request = exec_pb2.GlobRequest(
            pattern=pattern, path=path, limit=whole("limit", limit, 1, UINT32)
        )
        await self._connection.require("files.search")
        return GlobResult.from_proto(
            await self._call(lambda stub: stub.Glob, request, _LONG_SECONDS)
        )

    async def grep(
        self,
        pattern: str,
        path: str = "",
        *,
        glob: str = "",
        ignore_case: bool = False,
        context_lines: int = 0,
        include_ignored: bool = False,
        max_matches: int = 1000,
        timeout: float = _GREP_SECONDS,
    ) -> GrepResult:
        """Search files for a regular expression in ripgrep's syntax.

        path: a file or directory; empty is /workspace. glob: only files whose path matches.
        context_lines: around each match, up to 50. include_ignored: hidden files and what a
        .gitignore leaves out as well. max_matches: up to 100,000. timeout: seconds after which what
        was found until then is the answer, up to 600.
        """
        request = exec_pb2.GrepRequest(
            pattern=pattern,
            path=path,
            glob=glob,
            ignore_case=ignore_case,
            context_lines=whole("context_lines", context_lines, most=UINT32),
            include_ignored=include_ignored,
            max_matches=whole("max_matches", max_matches, 1, UINT32),
            timeout=duration("timeout", timeout),
        )
        await self._connection.require("files.search")

        async def attempt(channel: grpc.aio.Channel, _alive: _Alive) -> GrepResult:
            stub: Any = exec_pb2_grpc.FilesStub(channel)
            # It says nothing until it finds something.
            call = stub.Grep(request, timeout=timeout + _SILENCE_SECONDS)
            return await _gathered(call)

        return await self._connection.run(_in_time(attempt), bulk=True)

    async def move(self, source: str, destination: str, *, overwrite: bool = False) -> Entry:
        """Rename a file or directory, at once as a whole.

        Raises AlreadyExistsError where the destination exists, unless it is to be overwritten. It
        is not repeated after a lost connection, since by then the source may be another:
        UnavailableError says that it may or may not have been moved.
        """
        request = exec_pb2.MoveRequest(source=source, destination=destination, overwrite=overwrite)
        # Finds a broken connection beforehand, when nothing is at stake.
        await self._connection.run(lambda channel, _: self._connection.boot_id(channel))
        try:
            moved = await self._call(lambda stub: stub.Move, request, _QUICK_SECONDS, repeat=False)
        except UnavailableError as error:
            raise call_error(
                error.code, f"whether {source} was moved is not known: {error}"
            ) from None
        return Entry.from_proto(moved)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; recursive: with all that is in it."""
        request = exec_pb2.RemoveRequest(path=path, recursive=recursive)
        attempts = 0

        async def attempt(channel: grpc.aio.Channel, _alive: _Alive) -> None:
            nonlocal attempts
            attempts += 1
            stub: Any = exec_pb2_grpc.FilesStub(channel)
            try:
                await stub.Remove(request, timeout=_LONG_SECONDS)
            except grpc.aio.AioRpcError as error:
                # A repetition that finds nothing means that the lost answer was a success.
                if not (attempts > 1 and error.code() is grpc.StatusCode.NOT_FOUND):
                    raise

        await self._connection.run(_in_time(attempt))

    def watch(self, path: str = ".", *, recursive: bool = False) -> "AsyncWatch":
        """Follow changes below a path; recursive: in all its directories, at most 8,192.

        `async with session.files.watch("src") as changes: async for change in changes: ...`
        """
        request = exec_pb2.WatchRequest(path=path, recursive=recursive)
        return AsyncWatch(self._connection, request)

    async def _call(
        self,
        method: Callable[[Any], Any],
        request: Any,
        seconds: float,
        *,
        repeat: bool = True,
        once: bool = False,
    ) -> Any:
        async def attempt(channel: grpc.aio.Channel, _alive: _Alive) -> Any:
            return await method(exec_pb2_grpc.FilesStub(channel))(request, timeout=seconds)

        return await self._connection.run(_in_time(attempt), repeat=repeat, once=once)


class AsyncWatch:
    """Changes below a path, from AsyncFiles.watch; do not make one yourself.

    As a context it begins when the server follows the path, and ends the watch. Iterating gives
    Change until the watched path itself is gone. After a lost connection, and after a wait that was
    cancelled, it goes on with `overflow`.
    """

    def __init__(self, connection: Connection, request: exec_pb2.WatchRequest) -> None:
        self._connection = connection
        self._request = request
        self._was_set = False
        self._changes = self._follow()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        try:
            async for each in self._changes:
                if each is not None:
                    return each
        except BaseException:
            # It cannot be gone on with; the next one begins with `overflow`.
            self._changes = self._follow()
            raise
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        await anext(self._changes)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._changes.aclose()

    async def _follow(self) -> AsyncGenerator[Change | None, None]:
        """The changes; None for the word that the watch is set."""
        await self._connection.require("files.watch")
        async for attempt in self._connection.attempts():
            async with attempt:
                call = exec_pb2_grpc.FilesStub(attempt.channel).Watch(self._request)
                messages = watched(call, _SILENCE_SECONDS)
                is_set = False
                try:
                    async for message in messages:
                        attempt.alive()
                        if message.type == exec_pb2.WatchEvent.TYPE_READY:
                            is_set = True
                            was_set, self._was_set = self._was_set, True
                            yield Change("overflow", message.path) if was_set else None
                        elif message.type != exec_pb2.WatchEvent.TYPE_HEARTBEAT:
                            yield Change.from_proto(message)
                finally:
                    call.cancel()
                    await messages.aclose()
                if not is_set:
                    raise Lost("the exec server ended a watch before it was set")
                return


def _in_time(attempt: Any) -> Any:
    """The attempt, for which a deadline that passes means that the connection is lost."""

    async def timed(channel: grpc.aio.Channel, alive: _Alive) -> Any:
        try:
            return await attempt(channel, alive)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Lost("the exec server does not answer") from None
            raise

    return timed


async def _gathered(events: Any) -> GrepResult:
    lines: list[GrepLine] = []
    room = _GREP_BYTES
    async for event in events:
        if event.HasField("summary"):
            found = event.summary
            return GrepResult(
                lines=tuple(lines),
                matches=found.matches,
                files=found.files,
                truncated=found.truncated,
                warnings=tuple(found.warnings),
            )
        line = event.line
        lines.append(GrepLine(line.path, line.number, line.text, line.is_context))
        room -= event.ByteSize() + 100
        if room < 0:
            raise FailedPreconditionError(
                f"the lines have more than {_GREP_BYTES} bytes: search for less",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
    raise Lost("the exec server ended a search without its summary")
