"""Programs in a session: started once, followed from any offset, written to, signalled."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._connection import Connection
from ._deadline import GRACE_SECONDS, Ending, exceeded, within
from ._errors import (
    CloisterError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
    call_error,
)
from ._numbers import duration, some, whole
from ._outcomes import Exit, ProcessInfo, start_failed
from ._silence import Lost
from ._starting import terminal_size
from ._status import Details
from ._streams import AsyncOutput, Follower, unknown_outcome

# Well below the time for which a call is repeated: one silent loss must not use it up.
_CALL_SECONDS = 10.0
# One long poll for an end; a lost connection is noticed soon after it at the latest.
_POLL_SECONDS = 20.0
# Before asking again when the answer came too early.
_EARLY_SECONDS = 0.5
_FRAME = 65_536
_MOST_SIGNALS = 2**31 - 1
"""What a message holds; which signals there are the server knows."""
_SIGKILL, _SIGTERM, _SIGCONT, _SIGSTOP = 9, 15, 18, 19
# Sent twice they do what they do once.
_REPEATABLE = frozenset({_SIGKILL, _SIGCONT, _SIGSTOP})
_SCOPES = {
    "group": exec_pb2.SignalRequest.SCOPE_GROUP,
    "leader": exec_pb2.SignalRequest.SCOPE_LEADER,
    "tree": exec_pb2.SignalRequest.SCOPE_TREE,
}

T = TypeVar("T")


class Programs:
    """The Processes service of one session."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def start(self, request: exec_pb2.StartRequest) -> None:
        """Start a program once; raises StartFailedError when it cannot be."""

        async def attempt(channel: grpc.aio.Channel, _alive: Callable[[], None]) -> None:
            stub: Any = exec_pb2_grpc.ProcessesStub(channel)
            # No sign of life but the answer counts: others could be given for ever.
            async for event in _in_time(stub.Start(request, timeout=_CALL_SECONDS)):
                if event.HasField("failed"):
                    raise start_failed(event.failed)
                if event.HasField("detached"):
                    return
            raise Lost("the exec server did not say whether the program was started")

        await self.connection.run(attempt, once=True)

    async def call(
        self,
        make: Callable[[Any], Any],
        *,
        seconds: float = _CALL_SECONDS,
        repeat: bool = True,
    ) -> Any:
        """One call of the service. make: makes it from the stub and its time in seconds."""

        async def attempt(channel: grpc.aio.Channel, alive: Callable[[], None]) -> Any:
            stub: Any = exec_pb2_grpc.ProcessesStub(channel)
            try:
                answer = await make(stub)(timeout=seconds)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise Lost("the exec server does not answer") from None
                raise
            alive()
            return answer

        return await self.connection.run(attempt, repeat=repeat)

    async def wait(self, process_id: str, seconds: float) -> ProcessInfo:
        """The program after its end, or after so many seconds, at most 60; raises NotFoundError."""
        request = exec_pb2.WaitRequest(process_id=process_id, max_wait=duration("seconds", seconds))
        found = await self.call(lambda stub: _bind(stub.Wait, request), seconds=seconds + 10)
        return ProcessInfo.from_proto(found)

    async def list(self) -> list[ProcessInfo]:
        """All programs that run or are kept."""
        request = exec_pb2.ListProcessesRequest()
        found = await self.call(lambda stub: _bind(stub.List, request))
        return [ProcessInfo.from_proto(each) for each in found.processes]


class AsyncProcess(AsyncOutput):
    """A program, from AsyncSession.start or attach; do not make one yourself.

    `async for event in process` gives what it prints: Output and Gap, until it has ended. A lost
    connection is repaired, and reading goes on with the next byte. Cancelling a task that waits
    or reads leaves the program running, and so does losing this object; `stop` ends it. As a
    context manager it is stopped, with all that it started, and released at the context's end.

    Methods raise CallError when a call fails, SessionEndedError when the session is over, and
    OutcomeUnknownError when the server does not know the program any more.
    """

    def __init__(
        self,
        programs: Programs,
        process_id: str,
        *,
        offset: int = 0,
        accepted: int | None = None,
        until: Ending | None = None,
    ) -> None:
        whole("offset", offset)

        def attach(channel: grpc.aio.Channel, begin: int) -> Any:
            request = exec_pb2.AttachRequest(process_id=process_id, offset=begin, follow=True)
            return exec_pb2_grpc.ProcessesStub(channel).Attach(request)

        follower = Follower(programs.connection, None, attach, offset, until)
        super().__init__(programs.connection, follower, attach)
        self._programs = programs
        self._id = process_id
        self._accepted = accepted
        """Bytes of stdin that the server has taken; None: it must be asked."""
        self._writing = asyncio.Lock()
        self._released = False

    @property
    def id(self) -> str:
        """The id by which AsyncSession.attach finds it, from any program of the session."""
        return self._id

    async def result(self) -> Exit:
        """Wait until it has ended; its output can be read before, meanwhile and afterwards.

        With `block_when_full` somebody has to read, or a program that prints much never ends.
        Raises DeadlineExceededError when the server does not end what was started with a timeout.
        """
        until = self._follower.until
        while True:
            left = _POLL_SECONDS if until is None else until.at - time.monotonic()
            found = await self.wait(min(max(0.0, left), _POLL_SECONDS))
            if found is not None:
                return found
            self._follower.require_time()

    async def wait(self, seconds: float) -> Exit | None:
        """How it ended, or None when it still runs after so many seconds."""
        end = time.monotonic() + some("seconds", seconds)
        while self.exit is None:
            now = time.monotonic()
            at_most = min(max(0.0, end - now), _POLL_SECONDS)
            info = await self._poll(at_most)
            if info.running:
                early = now + at_most - time.monotonic()
                if early > 0:  # a server that does not wait must not be asked without a pause
                    await asyncio.sleep(min(early, _EARLY_SECONDS))
                if time.monotonic() >= end:
                    return None
                continue
            if info.exit is None:
                # Only the stream says why it could not be started.
                why = Follower(self._connection, None, self._again)
                return await within(_CALL_SECONDS, "saying why it did not start", why.finish())
            self._follower.exit = info.exit
        return self.exit

    async def write(self, data: bytes) -> None:
        """Write to its standard input, each byte once; returns when the program took them.

        One task at a time writes, others wait for it. When the task is cancelled a part may have
        been written. Raises FailedPreconditionError with the reason STDIN_CLOSED when the program
        does not read any more, and NO_STDIN when it was started without.
        """
        async with self._writing:
            await self._write(data, eof=False)

    async def close_stdin(self) -> None:
        """End its standard input; on a terminal this is Ctrl-D. Closing twice is no error."""
        async with self._writing:
            with contextlib.suppress(_StdinClosed):
                await self._write(b"", eof=True)

    async def signal(
        self, number: int, *, scope: str = "group", kill_after: float | None = None
    ) -> None:
        """Send it a signal.

        scope: `group`, its process group; `leader`, only the program itself; `tree`, everything
        that it started. kill_after: seconds after which the whole tree is killed if it still runs.
        Raises FailedPreconditionError with the reason NOT_RUNNING when it has ended.

        KILL, STOP and CONT are repeated after a lost connection. Others are not, since a program
        may count them: then UnavailableError says that it may or may not have arrived.
        """
        if scope not in _SCOPES:
            raise ValueError(f"scope must be one of {', '.join(_SCOPES)}")
        whole("number", number, most=_MOST_SIGNALS)
        repeat = number in _REPEATABLE
        if not repeat:
            # Finds a broken connection beforehand, when nothing is at stake.
            await self._poll(0)
        try:
            await self._signal(number, scope, kill_after, repeat=repeat)
        except UnavailableError as error:
            if repeat:
                raise
            raise call_error(
                error.code, f"whether signal {number} arrived is not known: {error}"
            ) from None

    async def resize(self, columns: int, rows: int) -> None:
        """Change the size of its terminal, in characters."""
        request = exec_pb2.ResizeRequest(process_id=self._id, size=terminal_size(columns, rows))
        await self._call(lambda stub: _bind(stub.Resize, request))

    async def stop(self, *, grace: float = 0.0) -> Exit:
        """End it with everything that it started, and wait for that; how it ended.

        grace: seconds between asking it to end (TERM) and killing it; 0 kills at once. A program
        that has ended is left as it is, with whatever it had left running. Raises
        DeadlineExceededError when the server does not say within 30 s more that it has ended.
        """
        duration("grace", grace)
        if self.exit is None:
            number = _SIGTERM if grace else _SIGKILL
            try:
                await self._signal(number, "tree", grace or None, repeat=True)
            except FailedPreconditionError as error:
                if error.reason != "NOT_RUNNING":
                    raise
        found = await self.wait(grace + GRACE_SECONDS)
        if found is None:
            raise exceeded("the exec server does not say that it has ended, though it was killed")
        return found

    async def release(self) -> None:
        """Let the server forget it and its output; releasing twice is no error.

        Raises FailedPreconditionError with the reason RUNNING while it runs. Without it the server
        forgets by itself, 10 minutes after the end or when it keeps too much.
        """
        await self._follower.aclose()
        request = exec_pb2.ReleaseRequest(process_id=self._id)
        with contextlib.suppress(NotFoundError):
            await self._programs.call(lambda stub: _bind(stub.Release, request))
        self._released = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._released:
            return
        try:
            await self.stop()
            await self.release()
        except CloisterError:
            # What went wrong first says more.
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id}>"

    async def _poll(self, seconds: float) -> ProcessInfo:
        return await self._known(lambda: self._programs.wait(self._id, seconds))

    async def _known(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something with the program, which was known once."""
        try:
            return await work()
        except NotFoundError as error:
            if error.reason == "UNKNOWN_ID":
                raise unknown_outcome() from None
            raise

    async def _call(self, make: Callable[[Any], Any], *, repeat: bool = True) -> Any:
        return await self._known(lambda: self._programs.call(make, repeat=repeat))

    async def _signal(
        self, number: int, scope: str, kill_after: float | None, *, repeat: bool
    ) -> None:
        request = exec_pb2.SignalRequest(process_id=self._id, signal=number, scope=_SCOPES[scope])
        if kill_after is not None:
            request.kill_after.CopyFrom(duration("kill_after", kill_after))
        await self._call(lambda stub: _bind(stub.Signal, request), repeat=repeat)

    async def _write(self, data: bytes, *, eof: bool) -> None:
        if self._accepted is None:
            self._accepted = await self._ask()
        begin = done = self._accepted
        end = begin + len(data)
        # Until the server has answered it is not known how much it took.
        self._accepted = None

        async def attempt(channel: grpc.aio.Channel, alive: Callable[[], None]) -> Any:
            nonlocal done
            stub: Any = exec_pb2_grpc.ProcessesStub(channel)
            if attempts:
                done = await self._state(channel, alive)
            attempts.append(done)
            rest = _frames(self._id, data[done - begin :], done, eof=eof)
            try:
                return await stub.WriteStdin(rest)
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                # It lasts until the program reads. Keepalive has seen the connection until now.
                alive()
                raise

        attempts: list[int] = []
        state = await self._known(lambda: self._programs.connection.run(attempt))
        self._accepted = state.accepted_bytes
        if state.accepted_bytes < end:
            raise _StdinClosed(
                "the program does not read its standard input any more",
                grpc.StatusCode.FAILED_PRECONDITION,
                Details(reason="STDIN_CLOSED"),
            )

    async def _ask(self) -> int:
        return await self._known(lambda: self._programs.connection.run(self._state))

    async def _state(self, channel: grpc.aio.Channel, alive: Callable[[], None]) -> int:
        """How many bytes the program's stdin has taken; waits for a write that goes on."""
        stub: Any = exec_pb2_grpc.ProcessesStub(channel)
        while True:
            nothing = _frames(self._id, b"", 0, eof=False)
            try:
                state = await stub.WriteStdin(nothing, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                # Either the connection is lost, or the program does not read what is written to it.
                await self._programs.connection.boot_id(channel)
                alive()
            else:
                alive()
                return int(state.accepted_bytes)


class _StdinClosed(FailedPreconditionError):
    """The program closed its standard input, or has ended."""


async def _in_time(stream: Any) -> AsyncIterator[Any]:
    """The messages of a call that answers soon or has lost its connection."""
    try:
        async for message in stream:
            yield message
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise Lost("the exec server does not answer") from None
        raise


async def _frames(
    process_id: str, data: bytes, offset: int, *, eof: bool
) -> AsyncIterator[exec_pb2.StdinFrame]:
    """What is to be written from an offset on, in pieces; one at least, to ask or to close."""
    for begin in range(0, max(len(data), 1), _FRAME):
        piece = data[begin : begin + _FRAME]
        yield exec_pb2.StdinFrame(
            process_id=process_id,
            offset=offset + begin,
            data=piece,
            eof=eof and begin + len(piece) == len(data),
        )


def _bind(rpc: Any, request: Any) -> Callable[..., Any]:
    return lambda **options: rpc(request, **options)
