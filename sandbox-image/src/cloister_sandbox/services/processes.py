"""cloister.exec.v1.Processes."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf import timestamp_pb2

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ..config import Config
from ..errors import InvalidField, WrongState
from ..guard import STOP
from ..jobs import Job, Scope
from ..programs import Order, Program, Programs
from ..state import ServerState
from ..terminal import MAX_SIDE
from .common import MAX_ID, concluding, require_claimed, require_length, unary
from .events import (
    CONCLUSIONS,
    TOLD_SECONDS,
    Events,
    exec_failure,
    exit_info,
    follow,
    policy,
    seconds,
)
from .starting import directory, variables

MAX_WAIT = 60.0
MAX_ARGUMENTS = 65_536
MAX_LABELS = 64
_SCOPES = {
    exec_pb2.SignalRequest.SCOPE_UNSPECIFIED: Scope.GROUP,
    exec_pb2.SignalRequest.SCOPE_GROUP: Scope.GROUP,
    exec_pb2.SignalRequest.SCOPE_LEADER: Scope.LEADER,
    exec_pb2.SignalRequest.SCOPE_TREE: Scope.TREE,
}


class ProcessesService(exec_pb2_grpc.ProcessesServicer):
    """Thin: checks the request, finds or starts the program, follows it."""

    def __init__(self, config: Config, state: ServerState, programs: Programs) -> None:
        self._config = config
        self._state = state
        self._programs = programs

    @concluding(*CONCLUSIONS)
    async def Start(self, request: exec_pb2.StartRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        require_claimed(self._state, known=self._programs.jobs.has(request.process_id))
        require_length("process_id", request.process_id, MAX_ID)
        order = self._order(request)
        job, replayed = self._programs.start(request.process_id, _digest(request), order)
        if request.detach:
            told = Events(job.id, replayed=replayed)
            if not await _begun(job, TOLD_SECONDS):
                yield told.next()
                await _begun(job)
            if job.failure is not None:
                yield told.next(failed=exec_failure(job.failure))
            else:
                yield told.next(detached=exec_pb2.Detached(process_id=job.id))
            return
        async with aclosing(follow(job, replayed=replayed)) as events:
            async for event in events:
                yield event

    @concluding(*CONCLUSIONS)
    async def Attach(self, request: exec_pb2.AttachRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        job = self._programs.jobs.get(request.process_id)
        following = follow(
            job,
            handle=request.process_id,
            offset=request.offset,
            replayed=True,
            only_now=not request.follow,
        )
        async with aclosing(following) as events:
            async for event in events:
                yield event

    @unary
    async def WriteStdin(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        program: Program | None = None
        async for frame in request:
            if program is None:
                program = await self._with_stdin(frame.process_id)
            if program.input is not None:
                await program.input.write(frame.offset, frame.data, frame.eof)
        if program is None:
            raise InvalidField("process_id", "is missing: there was no frame")
        if program.input is None:
            raise WrongState("NOT_RUNNING", "it could not be started", id=program.id)
        return exec_pb2.StdinState(
            accepted_bytes=program.input.accepted, closed=program.input.closed
        )

    @unary
    async def Signal(self, request: exec_pb2.SignalRequest, context: Any) -> Any:  # noqa: ARG002, N802
        job = self._programs.jobs.get(request.process_id)
        if not 1 <= request.signal <= 64:
            raise InvalidField("signal", "must be a signal's number, 1 to 64")
        if request.signal == STOP:
            raise InvalidField("signal", f"{STOP} ends the pod, and no tool may be sent it")
        if request.scope not in _SCOPES:
            raise InvalidField("scope", "is unknown")
        kill_after = seconds("kill_after", request.kill_after)
        await _begun(job)
        await job.signal(request.signal, _SCOPES[request.scope])
        if kill_after:
            job.kill_later(kill_after)
        return exec_pb2.SignalResponse()

    @unary
    async def Resize(self, request: exec_pb2.ResizeRequest, context: Any) -> Any:  # noqa: ARG002, N802
        job = self._programs.jobs.get(request.process_id)
        columns, rows = _size("size", request.size)
        await _begun(job)
        if not isinstance(job, Program):
            raise WrongState("NO_TERMINAL", "it was started without a terminal", id=job.id)
        await job.resize(columns, rows)
        return exec_pb2.ResizeResponse()

    @unary
    async def Wait(self, request: exec_pb2.WaitRequest, context: Any) -> Any:  # noqa: ARG002, N802
        job = self._programs.jobs.get(request.process_id)
        most = seconds("max_wait", request.max_wait)
        if most > MAX_WAIT:
            raise InvalidField("max_wait", f"must be at most {MAX_WAIT:g} s")
        if job.running and most:
            await asyncio.wait([job.done], timeout=most)
        return _process(job)

    @unary
    async def List(self, request: exec_pb2.ListProcessesRequest, context: Any) -> Any:  # noqa: ARG002, N802
        return exec_pb2.ListProcessesResponse(
            processes=[_process(job) for job in self._programs.jobs.all()]
        )

    @unary
    async def Release(self, request: exec_pb2.ReleaseRequest, context: Any) -> Any:  # noqa: ARG002, N802
        self._programs.jobs.release(request.process_id)
        return exec_pb2.ReleaseResponse()

    def _order(self, request: exec_pb2.StartRequest) -> Order:
        if not request.argv or not request.argv[0]:
            raise InvalidField("argv", "must name a program")
        if len(request.argv) > MAX_ARGUMENTS:
            raise InvalidField("argv", f"must have at most {MAX_ARGUMENTS} entries")
        if len(request.labels) > MAX_LABELS:
            raise InvalidField("labels", f"must have at most {MAX_LABELS} entries")
        for key, value in request.labels.items():
            require_length("labels", key, MAX_ID)
            if len(value) > MAX_ID:
                raise InvalidField("labels", f"must have values of at most {MAX_ID} characters")
        size = _size("terminal", request.terminal) if request.HasField("terminal") else None
        env = variables(self._state.environment, request.env)
        if size and "TERM" not in request.env:
            env["TERM"] = "xterm-256color"
        return Order(
            argv=tuple(request.argv),
            cwd=directory(self._config.workspace, request.cwd),
            env=env,
            policy=policy(request.output, one_stream=size is not None),
            size=size,
            stdin=request.stdin,
            timeout=seconds("timeout", request.timeout),
            labels=dict(request.labels),
        )

    async def _with_stdin(self, process_id: str) -> Program:
        job = self._programs.jobs.get(process_id)
        if not isinstance(job, Program) or not job.takes_input:
            raise WrongState("NO_STDIN", "it was started with an empty standard input", id=job.id)
        await _begun(job)
        return job


async def _begun(job: Job, at_most: float | None = None) -> bool:
    """Wait until the program runs, or cannot, at most so many seconds; whether that has come."""
    if not job.begun.done():
        await asyncio.wait([job.begun], timeout=at_most)
    return job.begun.done()


def _digest(request: exec_pb2.StartRequest) -> bytes:
    payload = exec_pb2.StartRequest()
    payload.CopyFrom(request)
    # How the first caller wanted to be answered is no part of what runs.
    payload.ClearField("detach")
    return hashlib.sha256(payload.SerializeToString(deterministic=True)).digest()


def _size(field: str, given: exec_pb2.TerminalSize) -> tuple[int, int]:
    for name in ("columns", "rows"):
        if not 1 <= getattr(given, name) <= MAX_SIDE:
            raise InvalidField(f"{field}.{name}", f"must be 1 to {MAX_SIDE}")
    return given.columns, given.rows


def _process(job: Job) -> exec_pb2.Process:
    process_id = job.detached_as or job.id
    started = timestamp_pb2.Timestamp()
    started.FromNanoseconds(int(job.started_at * 1e9))
    message = exec_pb2.Process(
        process_id=process_id,
        argv=job.argv,
        started_at=started,
        running=job.running,
        output_bytes=job.store.total,
        labels=job.labels,
    )
    if job.ending is not None:
        message.exit.CopyFrom(exit_info(job.ending, job.store))
    return message
