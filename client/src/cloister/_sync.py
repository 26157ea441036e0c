"""Session: the asynchronous one, for programs without an event loop."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ._copies import READ_LIMIT
from ._models import (
    Credentials,
    Entry,
    SessionInfo,
    ToolResult,
)
from ._outcomes import OutputPolicy, ProcessInfo, ShellInfo
from ._progress import Progress
from ._server_info import Activity, ServerInfo
from ._session import AsyncSession
from ._sync_files import Files
from ._sync_loop import run as _run
from ._sync_programs import Process, Shell

T = TypeVar("T")


class Session:
    """A session, from Client.create_session or get_session; do not make one yourself.

    Methods, errors and retries are those of AsyncSession. It may be used by several threads.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._async = session

    @property
    def info(self) -> SessionInfo:
        """The session as it was when this object was made."""
        return self._async.info

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self._async.namespace

    @property
    def name(self) -> str:
        """Its name, unique in the namespace."""
        return self._async.name

    @property
    def uid(self) -> str:
        """Its UID, unique forever."""
        return self._async.uid

    @property
    def environment(self) -> str:
        """Name of its Environment."""
        return self._async.environment

    @property
    def pod_name(self) -> str:
        """Name of the pod it runs in."""
        return self._async.pod_name

    @property
    def server_name(self) -> str:
        """The name that the exec server's certificate must prove."""
        return self._async.server_name

    @property
    def credentials(self) -> Credentials:
        """Its client certificate and key, for programs that call the exec server themselves."""
        return self._async.credentials

    @property
    def files(self) -> Files:
        """Its files for programs: text with etags, searches, moves and watches."""
        return Files(self._async.files)

    def server_info(self) -> ServerInfo:
        """What its exec server says of itself: version, capabilities, boot id."""
        return _run(self._async.server_info)

    def activity(self) -> Activity:
        """Whether something runs in it; see AsyncSession.activity."""
        return _run(self._async.activity)

    def bash(
        self,
        command: str,
        *,
        timeout_ms: int | None = None,
        context: str = "",
        request_id: str | None = None,
    ) -> ToolResult:
        """Run a command in the session's shell; see AsyncSession.bash."""
        return _run(
            lambda: self._async.bash(
                command, timeout_ms=timeout_ms, context=context, request_id=request_id
            )
        )

    def restart(self, *, context: str = "") -> ToolResult:
        """Replace the shell by a fresh one."""
        return _run(lambda: self._async.restart(context=context))

    def read(
        self,
        path: str,
        *,
        view_range: Sequence[int] | None = None,
        byte_range: Sequence[int] | None = None,
    ) -> ToolResult:
        """Read a file as a model sees it; see AsyncSession.read."""
        return _run(lambda: self._async.read(path, view_range=view_range, byte_range=byte_range))

    def write(self, path: str, content: str) -> ToolResult:
        """Write a text file, making its directories."""
        return _run(lambda: self._async.write(path, content))

    def edit(self, path: str, old: str, new: str, *, replace_all: bool = False) -> ToolResult:
        """Replace `old`, which must occur exactly once unless replace_all, by `new`."""
        return _run(lambda: self._async.edit(path, old, new, replace_all=replace_all))

    def glob(self, pattern: str, path: str | None = None) -> ToolResult:
        """Find files by name; path: the directory to look in, None is the workspace."""
        return _run(lambda: self._async.glob(pattern, path))

    def grep(self, pattern: str, path: str | None = None) -> ToolResult:
        """Search file contents for a regular expression; path as in `glob`."""
        return _run(lambda: self._async.grep(pattern, path))

    def call(
        self,
        tool: str,
        tool_input: Mapping[str, Any],
        *,
        request_id: str | None = None,
        context: str = "",
        budget: float | None = None,
    ) -> ToolResult:
        """Run any tool with its input as a model wrote it; see AsyncSession.call."""
        return _run(
            lambda: self._async.call(
                tool, tool_input, request_id=request_id, context=context, budget=budget
            )
        )

    def close_context(self, context: str) -> None:
        """End a context: its shell and every process in it."""
        _run(lambda: self._async.close_context(context))

    def start(
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
    ) -> Process:
        """Start a program without a shell; see AsyncSession.start."""
        return Process(
            _run(
                lambda: self._async.start(
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
            )
        )

    def attach(self, process_id: str, offset: int = 0) -> Process:
        """A program that runs or whose output is kept; see AsyncSession.attach."""
        return Process(_run(lambda: self._async.attach(process_id, offset)))

    def processes(self) -> list[ProcessInfo]:
        """All programs that run or whose output is kept, oldest first."""
        return _run(self._async.processes)

    def shell(
        self, shell_id: str | None = None, *, cwd: str = "", env: Mapping[str, str] | None = None
    ) -> Shell:
        """Open a shell whose commands stream their output; see AsyncSession.shell."""
        return Shell(_run(lambda: self._async.shell(shell_id, cwd=cwd, env=env)))

    def shells(self) -> list[ShellInfo]:
        """All shells that are open, oldest first."""
        return _run(self._async.shells)

    def stat(self, path: str) -> Entry:
        """Describe a path; raises NotFoundError."""
        return _run(lambda: self._async.stat(path))

    def list_files(self, path: str = "/workspace", *, depth: int = 1) -> list[Entry]:
        """The entries of a directory, parents before children; depth 1 is its own entries."""
        return _run(lambda: self._async.list_files(path, depth=depth))

    def read_bytes(
        self, path: str, *, first: int = 0, count: int | None = None, limit: int = READ_LIMIT
    ) -> bytes:
        """A file's bytes, or some of them; see AsyncSession.read_bytes."""
        return _run(lambda: self._async.read_bytes(path, first=first, count=count, limit=limit))

    def write_bytes(
        self,
        path: str,
        content: bytes,
        *,
        mode: int = 0o644,
        if_etag: str = "",
        create_only: bool = False,
    ) -> Entry:
        """Write a file, making its directories; see AsyncSession.write_bytes."""
        return _run(
            lambda: self._async.write_bytes(
                path, content, mode=mode, if_etag=if_etag, create_only=create_only
            )
        )

    def upload(
        self,
        source: str | Path,
        target: str,
        *,
        progress: Progress | None = None,
        skip_same: bool = True,
    ) -> list[str]:
        """Copy a file or a directory into the sandbox; see AsyncSession.upload.

        progress: is called in another thread.
        """
        return _run(
            lambda: self._async.upload(source, target, progress=progress, skip_same=skip_same)
        )

    def download(
        self,
        source: str,
        target: str | Path,
        *,
        progress: Progress | None = None,
        skip_same: bool = True,
    ) -> list[str]:
        """Copy a file or a directory out of the sandbox; see AsyncSession.download.

        progress: is called in another thread.
        """
        return _run(
            lambda: self._async.download(source, target, progress=progress, skip_same=skip_same)
        )

    @contextlib.contextmanager
    def reach(self) -> Iterator[str]:
        """A host:port that leads to the exec server, for as long as the context lasts."""
        manager = self._async.reach()
        address = _run(lambda: _enter(manager))
        try:
            yield address
        finally:
            _run(lambda: _leave(manager), ending=True)

    def close(self, *, delete: bool | None = None) -> None:
        """Close the connection; delete: see AsyncSession.close."""
        _run(lambda: self._async.close(delete=delete), ending=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.name}>"


async def _enter(manager: contextlib.AbstractAsyncContextManager[T]) -> T:
    return await manager.__aenter__()


async def _leave(manager: contextlib.AbstractAsyncContextManager[Any]) -> None:
    await manager.__aexit__(None, None, None)
