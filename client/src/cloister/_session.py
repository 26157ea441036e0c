"""AsyncSession: one claimed sandbox and the tools in it."""

import contextlib
import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from . import _trees
from ._connection import Connection
from ._errors import FailedPreconditionError, NotFoundError
from ._files import Files
from ._models import Credentials, Entry, SessionInfo, ToolResult
from ._outcomes import OutputPolicy, ProcessInfo, ShellInfo
from ._programs import AsyncProcess, Programs
from ._progress import Progress
from ._server_info import Activity, ServerInfo
from ._sessions_api import SessionsApi
from ._shells import AsyncShell, Shells
from ._starting import start_request
from ._tool_calls import ToolCalls
from ._workspace import AsyncFiles

_READ_LIMIT = 64 * 1024 * 1024
_CALL_SECONDS = 30.0


class AsyncSession:
    """A session, from AsyncClient.create_session or get_session; do not make one yourself.

    All methods raise CallError when a call fails, and SessionEndedError when the session is over.
    A lost connection is repaired by itself, and a call that was under way goes on: it is repeated
    under its request id, which never runs it twice.
    """

    def __init__(
        self,
        connection: Connection,
        sessions: SessionsApi,
        *,
        owned: bool,
        on_close: Callable[["AsyncSession"], object],
    ) -> None:
        self._connection = connection
        self._sessions = sessions
        self._owned = owned
        self._on_close = on_close
        self._closed = False
        self._files = Files(connection)
        self._programs = Programs(connection)
        self._shells = Shells(connection)
        self._workspace = AsyncFiles(connection)
        self._tools = ToolCalls(connection)

    @property
    def info(self) -> SessionInfo:
        """The session as it was when this object was made."""
        return self._connection.info

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.info.namespace

    @property
    def name(self) -> str:
        """Its name, unique in the namespace."""
        return self.info.name

    @property
    def uid(self) -> str:
        """Its UID, unique forever."""
        return self.info.uid

    @property
    def environment(self) -> str:
        """Name of its Environment."""
        return self.info.environment

    @property
    def pod_name(self) -> str:
        """Name of the pod it runs in."""
        return self.info.pod_name

    @property
    def server_name(self) -> str:
        """The name that the exec server's certificate must prove."""
        return self.info.server_name

    @property
    def credentials(self) -> Credentials:
        """Its client certificate and key, for programs that call the exec server themselves."""
        return self._connection.credentials

    @property
    def files(self) -> AsyncFiles:
        """Its files for programs: text with etags, searches, moves and watches."""
        return self._workspace

    async def server_info(self) -> ServerInfo:
        """What its exec server says of itself: version, capabilities, boot id."""
        await self._connection.run(lambda channel, _: self._connection.boot_id(channel))
        return await self._connection.server()

    async def activity(self) -> Activity:
        """Whether something runs in it, by which the platform tells that it is idle."""

        async def attempt(channel: grpc.aio.Channel, _alive: Callable[[], None]) -> Activity:
            stub: Any = exec_pb2_grpc.RuntimeStub(channel)
            found = await stub.Activity(exec_pb2.ActivityRequest(), timeout=_CALL_SECONDS)
            return Activity.from_proto(found)

        return await self._connection.run(attempt)

    async def bash(
        self,
        command: str,
        *,
        timeout_ms: int | None = None,
        context: str = "",
        request_id: str | None = None,
    ) -> ToolResult:
        """Run a command in the session's shell, which keeps its directory, variables and functions.

        timeout_ms: after this many milliseconds the command is stopped, and the answer holds what
        it had printed; None is the server's own limit. context: see `call`.
        """
        given: dict[str, Any] = {"command": command}
        if timeout_ms is not None:
            given["timeout_ms"] = timeout_ms
        return await self.call("bash", given, context=context, request_id=request_id)

    async def restart(self, *, context: str = "") -> ToolResult:
        """Replace the shell by a fresh one."""
        return await self.call("bash", {"restart": True}, context=context)

    async def read(
        self,
        path: str,
        *,
        view_range: Sequence[int] | None = None,
        byte_range: Sequence[int] | None = None,
    ) -> ToolResult:
        """Read a text file, an image or a PDF as a model sees it.

        view_range: first and last line, counted from 1; a last line of -1 is the end. byte_range:
        the first byte, counted from 0, and the one before which to stop; 0 is the end.
        """
        given: dict[str, Any] = {"file_path": path}
        if view_range is not None:
            given["view_range"] = list(view_range)
        if byte_range is not None:
            given["byte_range"] = list(byte_range)
        return await self.call("read", given)

    async def write(self, path: str, content: str) -> ToolResult:
        """Write a text file, making its directories."""
        return await self.call("write", {"file_path": path, "content": content})

    async def edit(self, path: str, old: str, new: str, *, replace_all: bool = False) -> ToolResult:
        """Replace `old`, which must occur exactly once unless replace_all, by `new`."""
        given = {"file_path": path, "old_string": old, "new_string": new}
        if replace_all:
            return await self.call("edit", {**given, "replace_all": True})
        return await self.call("edit", given)

    async def glob(self, pattern: str, path: str | None = None) -> ToolResult:
        """Find files by name; path: the directory to look in, None is the workspace."""
        return await self.call("glob", _with_path(pattern, path))

    async def grep(self, pattern: str, path: str | None = None) -> ToolResult:
        """Search file contents for a regular expression; path as in `glob`."""
        return await self.call("grep", _with_path(pattern, path))

    async def call(
        self,
        tool: str,
        tool_input: Mapping[str, Any],
        *,
        request_id: str | None = None,
        context: str = "",
        budget: float | None = None,
    ) -> ToolResult:
        """Run any tool with its input as a model wrote it.

        request_id: unique per call, such as the model's tool-use id; the same id with the same
        input answers with the first call's result. None chooses one. context: calls of one context
        share a shell and run one at a time; give each of several agents its own. budget: seconds
        the whole call may take; DeadlineExceededError is raised when the server has not answered
        30 s after them. When the awaiting task is cancelled, the call is stopped in the sandbox
        too.
        """
        return await self._tools.call(tool, tool_input, request_id, context, budget)

    async def close_context(self, context: str) -> None:
        """End a context: its shell and every process in it. Closing an unknown one is no error."""

        await self._tools.close_context(context)

    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
        terminal: tuple[int, int] | None = None,
        timeout: float | None = None,
        separate_stderr: bool = True,
        output: OutputPolicy | None = None,
        process_id: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncProcess:
        """Start a program without a shell; returns when it runs.

        argv: the program, looked up in PATH, and its arguments. cwd: empty is the workspace. env:
        added to the session's variables. stdin: whether `write` can be used; else it is empty.
        terminal: columns and rows of a terminal for it, which has stdin and one stream. timeout:
        seconds, after which it is interrupted, then terminated, then killed. separate_stderr:
        whether stderr is a stream of its own. output: what the server keeps of what it prints.
        process_id: unique per program; the same id with the same arguments attaches, and starts
        nothing again. None chooses one. labels: shown by `processes`.

        Raises StartFailedError when there is no such program or directory, for example. Cancelling
        the task leaves open whether it was started.
        """
        request = start_request(
            argv,
            cwd=cwd,
            env=env,
            stdin=stdin,
            terminal=terminal,
            timeout=timeout,
            separate_stderr=separate_stderr,
            output=output,
            process_id=process_id,
            labels=labels,
        )
        if terminal is not None:
            # A server that does not know of it would start the program without.
            await self._connection.require("terminal")
        await self._programs.start(request)
        # Under an id of the caller's own it may have been started, and written to, before.
        accepted = None if process_id else 0
        return AsyncProcess(self._programs, request.process_id, accepted=accepted, timeout=timeout)

    async def attach(self, process_id: str, offset: int = 0) -> AsyncProcess:
        """A program that runs or whose output is kept, read from an offset on.

        Its output is kept within the bounds it was started with, and for 10 minutes after its end;
        what is not there any more comes as a Gap. Raises NotFoundError.
        """
        await self._programs.wait(process_id, 0)
        return AsyncProcess(self._programs, process_id, offset=offset)

    async def processes(self) -> list[ProcessInfo]:
        """All programs that run or whose output is kept, oldest first."""
        return await self._programs.list()

    async def shell(
        self, shell_id: str | None = None, *, cwd: str = "", env: Mapping[str, str] | None = None
    ) -> AsyncShell:
        """Open a shell for commands whose output streams, or find the one of this id.

        shell_id: None chooses one. cwd: where it starts; empty is the workspace. env: added to the
        session's variables. Raises AlreadyExistsError when it was opened with others. These shells
        are not those of `bash` and its contexts.
        """
        info = await self._shells.open(shell_id or uuid.uuid4().hex, cwd, env or {})
        return AsyncShell(self._shells, info)

    async def shells(self) -> list[ShellInfo]:
        """All shells that are open, oldest first."""
        return await self._shells.list()

    async def stat(self, path: str) -> Entry:
        """Describe a path; raises NotFoundError."""
        return await self._files.stat(path)

    async def list_files(self, path: str = "/workspace", *, depth: int = 1) -> list[Entry]:
        """The entries of a directory, parents before children; depth 1 is its own entries."""
        return await self._files.list(path, depth)

    async def read_bytes(self, path: str, *, limit: int = _READ_LIMIT) -> bytes:
        """A file's bytes; raises FailedPreconditionError when there are more than `limit`."""
        content = io.BytesIO()

        def keep(data: bytes) -> None:
            if content.tell() + len(data) > limit:
                raise FailedPreconditionError(
                    f"{path} has more than {limit} bytes", grpc.StatusCode.FAILED_PRECONDITION
                )
            content.write(data)

        await self._files.read(path, keep)
        return content.getvalue()

    async def write_bytes(
        self,
        path: str,
        content: bytes,
        *,
        mode: int = 0o644,
        if_etag: str = "",
        create_only: bool = False,
    ) -> Entry:
        """Write a file, making its directories; it appears when it is complete.

        if_etag: of the Entry that it may replace; FailedPreconditionError (ETAG_MISMATCH) when
        another file is there by now. create_only: AlreadyExistsError when there is any.
        """
        return await self._files.write(
            path, content, mode, if_etag=if_etag, create_only=create_only
        )

    async def upload(
        self,
        source: str | Path,
        target: str,
        *,
        progress: Progress | None = None,
        skip_same: bool = True,
    ) -> list[str]:
        """Copy a file or a directory of this machine into the sandbox, with modes and times.

        A target that is a directory, or ends in a slash, gets the source under its own name.
        Returns what was left out: links to directories, devices. Raises LocalFileError, also when
        a file changes while it is read.

        progress: called as progress(bytes done, bytes in all or None, files done, name) on the
        event loop; it must not block, and what it raises ends the copy. skip_same: pass over the
        files of a directory that have the same size, modification time and mode on both sides. So
        a copy that was interrupted goes on when it is repeated; of a large file, what arrived is
        kept for ten minutes.
        """
        return await _trees.upload(
            self._files, Path(source), target, progress=progress, skip_same=skip_same
        )

    async def download(
        self,
        source: str,
        target: str | Path,
        *,
        progress: Progress | None = None,
        skip_same: bool = True,
    ) -> list[str]:
        """Copy a file or a directory of the sandbox to this machine, with modes and times.

        A target that is a directory gets the source under its own name; nothing is written outside
        it, nor through links in it. Returns what was left out: symbolic links, devices. Files of a
        directory that are removed meanwhile are not copied. Raises LocalFileError, and
        DataLossError when a file goes on changing while it is read.

        progress, skip_same: see `upload`. What arrived of a large file is kept beside it, as
        `.NAME.*.partial`, until the copy is repeated.
        """
        return await _trees.download(
            self._files, source, Path(target), progress=progress, skip_same=skip_same
        )

    def reach(self) -> AbstractAsyncContextManager[str]:
        """A host:port that leads to the exec server, for as long as the context lasts.

        Whoever connects there must present `credentials` and check `server_name`.
        """
        return self._connection.reach()

    async def close(self, *, delete: bool | None = None) -> None:
        """Close the connection; closing twice is no error.

        delete: whether the session ends with it; None ends it if this client created it.
        """
        if self._closed:
            return
        self._closed = True
        self._on_close(self)
        try:
            if self._owned if delete is None else delete:
                with contextlib.suppress(NotFoundError):
                    await self._sessions.delete(self.namespace, self.name)
        finally:
            await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.name}>"


def _with_path(pattern: str, path: str | None) -> dict[str, str]:
    return {"pattern": pattern} if path is None else {"pattern": pattern, "path": path}
