"""AsyncSession: one claimed sandbox and the tools in it."""

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._connection import Connection
from ._copies import FileCopies
from ._deadline import end_of
from ._errors import NotFoundError
from ._models import Credentials, SessionInfo, ToolResult
from ._outcomes import OutputPolicy, ProcessInfo, ShellInfo
from ._programs import AsyncProcess, Programs
from ._server_info import Activity, ServerInfo
from ._sessions_api import SessionsApi
from ._shells import AsyncShell, Shells
from ._starting import start_request
from ._tool_calls import ToolCalls
from ._workspace import AsyncFiles

_CALL_SECONDS = 30.0


class AsyncSession(FileCopies):
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
        super().__init__(connection)
        self._connection = connection
        self._sessions = sessions
        self._owned = owned
        self._on_close = on_close
        self._closed = False
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
        until = end_of(timeout, (output or OutputPolicy()).kept_bytes)
        return AsyncProcess(self._programs, request.process_id, accepted=accepted, until=until)

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
