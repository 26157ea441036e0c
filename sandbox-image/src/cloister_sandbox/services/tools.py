"""cloister.exec.v1.Tools."""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import struct_pb2

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ..answers import LARGE, MEDIUM, MEDIUM_AT_ONCE, Answers
from ..calls import Calls
from ..contexts import TOOLS, Context, Contexts
from ..errors import InvalidField
from ..shell import Cancel
from ..state import Activity, ServerState
from ..toolset.results import NO_OUTPUT, ToolResult
from .common import MAX_ID, concluding, require_claimed, require_length, sendable, unary
from .events import duration, seconds

PROGRESS_SECONDS = 5.0
MAX_LIST = 64
"""Entries of a list; the longest that a tool takes has two."""


class ToolsService(exec_pb2_grpc.ToolsServicer):
    """Thin: checks the request, finds or starts the call, follows it."""

    def __init__(
        self, state: ServerState, contexts: Contexts, calls: Calls, activity: Activity
    ) -> None:
        self._state = state
        self._contexts = contexts
        self._calls = calls
        self._activity = activity
        self._medium, self._large = Answers(MEDIUM_AT_ONCE), Answers()

    @concluding("result")
    async def Call(self, request: exec_pb2.CallRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        require_claimed(self._state, known=self._calls.has(request.request_id))
        require_length("request_id", request.request_id, MAX_ID)
        if len(request.context_id) > MAX_ID:
            raise InvalidField("context_id", f"must have at most {MAX_ID} characters")
        if request.tool not in TOOLS:
            raise InvalidField("tool", f"must be one of {', '.join(TOOLS)}")
        budget = seconds("budget", request.budget) if request.HasField("budget") else 0.0
        target = self._contexts.get(request.context_id)
        payload = b"\0".join(
            (request.tool.encode(), request.context_id.encode())
        ) + request.input.SerializeToString(deterministic=True)
        given = {name: _plain(value) for name, value in request.input.fields.items()}

        async def work(cancel: Cancel) -> ToolResult:
            with self._activity:
                return await self._contexts.run(target, request.tool, given, budget, cancel)

        call, replayed = self._calls.start(request.request_id, payload, work)
        while (result := await call.ended(PROGRESS_SECONDS)) is None:
            yield exec_pb2.CallEvent(progress=exec_pb2.Progress(output_bytes=_printed(target)))
        if result.size < MEDIUM:
            yield exec_pb2.CallEvent(result=_result(result, replayed))
            return
        if result.size < LARGE:
            await self._medium.hold(context)
            yield exec_pb2.CallEvent(result=_result(result, replayed))
            return
        if request.tool == "read":
            # Those who wait keep no file that was read: together they would fill the memory.
            del call, result
        await self._large.hold(context)
        if request.tool == "read":
            # What was forgotten meanwhile is read again; nobody has seen it.
            call, _ = self._calls.start(request.request_id, payload, work)
            while (result := await call.ended(PROGRESS_SECONDS)) is None:
                pass
        yield exec_pb2.CallEvent(result=_result(result, replayed))

    @unary
    async def Cancel(self, request: exec_pb2.CancelRequest, context: Any) -> Any:  # noqa: ARG002, N802
        self._calls.cancel(request.request_id)
        return exec_pb2.CancelResponse()

    @unary
    async def CloseContext(self, request: exec_pb2.CloseContextRequest, context: Any) -> Any:  # noqa: ARG002, N802
        await self._contexts.close(request.context_id)
        return exec_pb2.CloseContextResponse()


def _plain(value: struct_pb2.Value) -> Any:
    """A value as Python has it; quicker than the general JSON conversion, and takes NaN.

    What no tool takes is not converted: an object inside an input, or a list of more than numbers.
    A request of the largest size would become a hundred times its size.
    """
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {}
    if kind == "list_value":
        # One more than is taken, so that it is seen to be too long.
        few = value.list_value.values[: MAX_LIST + 1]
        return [{} if each.HasField("list_value") else _plain(each) for each in few]
    return None if kind in (None, "null_value") else getattr(value, kind)


def _printed(context: Context) -> int:
    output = context.shell.output
    return output.tail.total if output is not None and output.tail is not None else 0


def _result(result: ToolResult, replayed: bool) -> exec_pb2.CallResult:
    message = exec_pb2.CallResult(is_error=result.is_error, replayed=replayed)
    block = message.content.add()
    if result.blob is not None:
        blob = exec_pb2.Blob(media_type=result.blob.media_type, data=result.blob.data)
        if result.blob.media_type.startswith("image/"):
            block.image.CopyFrom(blob)
        else:
            block.document.CopyFrom(blob)
    else:
        block.text = sendable(result.text or NO_OUTPUT)
    finished = result.finished
    if finished is None:
        return message
    info = message.exit
    if finished.code > 128 and finished.shell_lost:
        info.signal = finished.code - 128
    else:
        info.code = finished.code
    if finished.cancelled:
        info.reason = exec_pb2.ExitInfo.REASON_CANCELLED
    elif finished.timed_out:
        info.reason = exec_pb2.ExitInfo.REASON_TIMED_OUT
    elif finished.shell_closed:
        info.reason = exec_pb2.ExitInfo.REASON_SHUTDOWN
    elif finished.shell_lost:
        info.reason = exec_pb2.ExitInfo.REASON_SHELL_LOST
    else:
        info.reason = exec_pb2.ExitInfo.REASON_EXITED
    info.wall.CopyFrom(duration(finished.wall))
    info.cwd = sendable(finished.cwd)
    info.surviving_processes = finished.surviving
    message.state_lost = finished.shell_lost or finished.reopened
    if finished.omitted_bytes:
        message.truncation.total_bytes = finished.total_bytes
        message.truncation.omitted_bytes = finished.omitted_bytes
        message.truncation.spool_path = finished.file
    return message
