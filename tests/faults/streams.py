"""Programs and shell commands followed over losses, by nothing but the rules of the API.

A second, small implementation beside the client library's own: it starts a program again under its
id, attaches at the next offset, and asks how much of stdin was accepted.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from cloister._connection import Connection, Lost, watched
from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

_FRAME = 32_768
_ANSWER_SECONDS = 5.0
"""After so long an answer to stdin frames is taken for lost, and the count is asked for again."""
Alive = Callable[[], None]


@dataclass
class Ran:
    """What a program printed, by stream, and how it ended."""

    output: dict[int, bytearray] = field(default_factory=dict)
    exit: exec_pb2.ExitInfo | None = None

    @property
    def printed(self) -> bytes:
        """Standard output."""
        return bytes(self.output.get(exec_pb2.Output.STREAM_STDOUT, b""))

    @property
    def errors(self) -> bytes:
        """Standard error, when it is a stream of its own."""
        return bytes(self.output.get(exec_pb2.Output.STREAM_STDERR, b""))

    @property
    def code(self) -> int:
        """The exit code."""
        assert self.exit is not None
        assert self.exit.WhichOneof("status") == "code", self.exit
        return self.exit.code


async def run_program(
    connection: Connection, request: exec_pb2.StartRequest, stdin: bytes | None = None
) -> Ran:
    """Start a program, feed it, and follow it to its end."""
    started = asyncio.Event()

    def call(channel: grpc.aio.Channel, offset: int) -> Any:
        stub: Any = exec_pb2_grpc.ProcessesStub(channel)
        if not started.is_set():
            return stub.Start(request)
        return stub.Attach(
            exec_pb2.AttachRequest(process_id=request.process_id, offset=offset, follow=True)
        )

    # A failure of either ends the other.
    async with asyncio.TaskGroup() as group:
        group.create_task(_feed(connection, request.process_id, stdin, started))
        following = group.create_task(_follow(connection, call, started))
    return following.result()


async def run_in_shell(connection: Connection, request: exec_pb2.RunRequest) -> Ran:
    """Run a command in a shell and follow it to its end."""

    def call(channel: grpc.aio.Channel, offset: int) -> Any:
        again = exec_pb2.RunRequest()
        again.CopyFrom(request)
        again.resume_offset = offset
        stub: Any = exec_pb2_grpc.ShellsStub(channel)
        return stub.Run(again)

    return await _follow(connection, call, asyncio.Event())


async def unary(
    connection: Connection, call: Callable[[grpc.aio.Channel], Any], seconds: float
) -> Any:
    """A call that may be repeated, with one answer."""

    async def attempt(channel: grpc.aio.Channel, _alive: Alive) -> Any:
        try:
            return await asyncio.wait_for(call(channel), seconds)
        except TimeoutError:
            raise Lost("no answer") from None

    return await connection.run(attempt)


async def _follow(
    connection: Connection,
    call: Callable[[grpc.aio.Channel, int], Any],
    started: asyncio.Event,
) -> Ran:
    ran = Ran()
    offset = 0

    async def attempt(channel: grpc.aio.Channel, alive: Alive) -> Ran:
        nonlocal offset
        sequence = 0
        async for event in watched(call(channel, offset)):
            alive()
            sequence += 1
            assert event.seq == sequence, "events must be numbered"
            kind = event.WhichOneof("event")
            if kind == "started":
                assert sequence == 1
                started.set()
            elif kind == "output":
                assert event.output.offset == offset, (event.output.offset, offset)
                ran.output.setdefault(event.output.stream, bytearray()).extend(event.output.data)
                offset += len(event.output.data)
            elif kind == "exited":
                ran.exit = event.exited
                return ran
            else:
                assert kind == "heartbeat", event
        raise Lost("the stream ended without an end")

    return await connection.run(attempt)


async def _feed(
    connection: Connection, process_id: str, stdin: bytes | None, started: asyncio.Event
) -> None:
    if stdin is None:
        return
    await started.wait()

    def frames(accepted: int) -> AsyncIterator[exec_pb2.StdinFrame]:
        async def made() -> AsyncIterator[exec_pb2.StdinFrame]:
            for at in range(accepted, len(stdin), _FRAME):
                yield exec_pb2.StdinFrame(
                    process_id=process_id, offset=at, data=stdin[at : at + _FRAME]
                )
            yield exec_pb2.StdinFrame(process_id=process_id, offset=len(stdin), eof=True)

        return made()

    async def ask() -> AsyncIterator[exec_pb2.StdinFrame]:
        yield exec_pb2.StdinFrame(process_id=process_id)

    async def write(channel: grpc.aio.Channel) -> exec_pb2.StdinState:
        stub: Any = exec_pb2_grpc.ProcessesStub(channel)
        state: exec_pb2.StdinState = await stub.WriteStdin(ask())
        if not state.closed:
            state = await stub.WriteStdin(frames(state.accepted_bytes))
        return state

    state = await unary(connection, write, _ANSWER_SECONDS)
    assert (state.accepted_bytes, state.closed) == (len(stdin), True)
