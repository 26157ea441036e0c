"""Shells of a session: state that stays, commands whose output streams and can be read again."""

import contextlib
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._connection import Connection
from ._deadline import Ending, end_of
from ._errors import CloisterError, NotFoundError
from ._numbers import duration
from ._outcomes import Exit, OutputPolicy, ShellInfo
from ._silence import Lost
from ._streams import AsyncOutput, Follower, Opener

# Opening or resetting a shell ends what ran in it, which takes some seconds at worst.
# Well below the time for which a call is repeated: one silent loss must not use it up.
_CALL_SECONDS = 10.0
OnTimeout = Literal["kill", "detach"]
_ON_TIMEOUT = {"kill": exec_pb2.ON_TIMEOUT_KILL, "detach": exec_pb2.ON_TIMEOUT_DETACH}


class Shells:
    """The Shells service of one session."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def open(self, shell_id: str, cwd: str, env: Mapping[str, str]) -> ShellInfo:
        """Open a shell, or find the one of this id."""
        request = exec_pb2.OpenShellRequest(shell_id=shell_id, cwd=cwd, env=dict(env))
        await self.connection.require("shells")
        found = await self._call(lambda stub: stub.Open(request, timeout=_CALL_SECONDS))
        return ShellInfo.from_proto(found)

    async def reset(self, shell_id: str) -> ShellInfo:
        """Start a shell afresh."""
        request = exec_pb2.ResetShellRequest(shell_id=shell_id)
        found = await self._call(lambda stub: stub.Reset(request, timeout=_CALL_SECONDS))
        return ShellInfo.from_proto(found)

    async def close(self, shell_id: str) -> None:
        """End a shell; one that is not open is no error."""
        request = exec_pb2.CloseShellRequest(shell_id=shell_id)
        with contextlib.suppress(NotFoundError):
            await self._call(lambda stub: stub.Close(request, timeout=_CALL_SECONDS))

    async def list(self) -> list[ShellInfo]:
        """All shells that are open."""
        request = exec_pb2.ListShellsRequest()
        found = await self._call(lambda stub: stub.List(request, timeout=_CALL_SECONDS))
        return [ShellInfo.from_proto(each) for each in found.shells]

    async def _call(self, make: Callable[[Any], Any]) -> Any:
        async def attempt(channel: grpc.aio.Channel, alive: Callable[[], None]) -> Any:
            try:
                answer = await make(exec_pb2_grpc.ShellsStub(channel))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise Lost("the exec server does not answer") from None
                raise
            alive()
            return answer

        return await self.connection.run(attempt)


class AsyncCommand(AsyncOutput):
    """A command of a shell, from AsyncShell.run or attach; do not make one yourself.

    `async for event in command` gives what it prints, Output and Gap, until it has ended; a lost
    connection is repaired. Cancelling a task that waits or reads leaves the command running;
    AsyncShell.reset ends it. Errors are those of AsyncProcess.
    """

    def __init__(
        self, connection: Connection, follower: Follower, again: Opener, command_id: str
    ) -> None:
        super().__init__(connection, follower, again)
        self._id = command_id

    @property
    def id(self) -> str:
        """The id by which AsyncShell.attach finds it."""
        return self._id

    async def result(self) -> Exit:
        """Wait until it has ended, or was detached; its output can be read afterwards."""
        return await self._follower.finish()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id}>"


class AsyncShell:
    """A shell, from AsyncSession.shell; do not make one yourself.

    Its directory, variables and functions stay from command to command. It runs one command at a
    time; another one fails with FailedPreconditionError (SHELL_BUSY) meanwhile. As a context
    manager it is closed at the context's end; otherwise it stays, for whoever knows its id.
    """

    def __init__(self, shells: Shells, info: ShellInfo) -> None:
        self._shells = shells
        self._info = info

    @property
    def id(self) -> str:
        """The id by which AsyncSession.shell finds it, from any program of the session."""
        return self._info.id

    @property
    def info(self) -> ShellInfo:
        """The shell as it was when it was opened or reset."""
        return self._info

    async def run(
        self,
        script: str,
        *,
        timeout: float | None = None,
        on_timeout: OnTimeout = "kill",
        output: OutputPolicy | None = None,
        command_id: str | None = None,
    ) -> AsyncCommand:
        """Run a command; returns when it was begun.

        timeout: seconds, after which it is interrupted, then terminated, then killed; or, with
        on_timeout="detach", goes on as a program that AsyncSession.attach finds, while the shell
        is replaced by a fresh one in the same directory. output: what is kept of what it prints.
        command_id: the same id with the same arguments attaches, and runs nothing again.
        """
        if on_timeout not in _ON_TIMEOUT:
            raise ValueError(f"on_timeout must be one of {', '.join(_ON_TIMEOUT)}")
        policy = output or OutputPolicy()
        request = exec_pb2.RunRequest(
            shell_id=self.id,
            command_id=command_id or uuid.uuid4().hex,
            script=script,
            on_timeout=_ON_TIMEOUT[on_timeout],
            output=policy.to_proto(),
        )
        if timeout is not None:
            request.timeout.CopyFrom(duration("timeout", timeout))

        def run(channel: grpc.aio.Channel, _offset: int) -> Any:
            return exec_pb2_grpc.ShellsStub(channel).Run(request)

        # What is detached goes on, and the command says so when its time is up.
        until = end_of(timeout, policy.kept_bytes)
        return await self._follow(request.command_id, run, until)

    async def attach(self, command_id: str) -> AsyncCommand:
        """A command of this shell that runs or is kept, from its first byte.

        Raises NotFoundError.
        """
        return await self._follow(command_id, self._attaching(command_id))

    async def reset(self) -> None:
        """End what it runs, and start it afresh in its first directory."""
        self._info = await self._shells.reset(self.id)

    async def close(self) -> None:
        """End it with every process in it; closing twice is no error."""
        await self._shells.close(self.id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except CloisterError:
            # What went wrong first says more.
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def _attaching(self, command_id: str) -> Opener:
        def attach(channel: grpc.aio.Channel, offset: int) -> Any:
            request = exec_pb2.RunRequest(
                shell_id=self.id, command_id=command_id, resume_offset=offset, attach_only=True
            )
            return exec_pb2_grpc.ShellsStub(channel).Run(request)

        return attach

    async def _follow(
        self, command_id: str, first: Opener, until: Ending | None = None
    ) -> AsyncCommand:
        again = self._attaching(command_id)
        follower = Follower(self._shells.connection, first, again, until=until)
        await follower.begin()
        return AsyncCommand(self._shells.connection, follower, again, command_id)
