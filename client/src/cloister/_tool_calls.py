"""The Tools service of one session: calls that are run once, and stopped when nobody waits."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from cloister_api.cancelling import being_cancelled
from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._connection import Connection
from ._deadline import within
from ._errors import NotFoundError
from ._models import ToolResult
from ._numbers import duration
from ._silence import Lost, watched

_CALL_SECONDS = 30.0
_CANCEL_SECONDS = 4.0
_CANCEL_TRIES = 3


class ToolCalls:
    """The Tools service of one session."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def call(
        self,
        tool: str,
        tool_input: Mapping[str, Any],
        request_id: str | None,
        context: str,
        budget: float | None,
    ) -> ToolResult:
        """Run a tool; see AsyncSession.call."""
        request = exec_pb2.CallRequest(
            request_id=request_id or uuid.uuid4().hex, tool=tool, context_id=context
        )
        request.input.update(tool_input)
        if budget is not None:
            request.budget.CopyFrom(duration("budget", budget))

        async def attempt(channel: grpc.aio.Channel, alive: Callable[[], None]) -> ToolResult:
            try:
                return await _follow(exec_pb2_grpc.ToolsStub(channel).Call(request), alive)
            except asyncio.CancelledError:
                if being_cancelled():
                    await _stop(channel, request.request_id)
                raise

        return await within(budget, "the call", self._connection.run(attempt, once=True))

    async def close_context(self, context: str) -> None:
        """End a context; an unknown one is no error."""

        async def attempt(channel: grpc.aio.Channel, _alive: Callable[[], None]) -> None:
            stub: Any = exec_pb2_grpc.ToolsStub(channel)
            await stub.CloseContext(
                exec_pb2.CloseContextRequest(context_id=context), timeout=_CALL_SECONDS
            )

        with contextlib.suppress(NotFoundError):
            await self._connection.run(attempt)


async def _follow(stream: Any, alive: Callable[[], None]) -> ToolResult:
    """Wait for the result; raises Lost when the stream ends or falls silent before it."""
    async for event in watched(stream):
        alive()
        if event.HasField("result"):
            return ToolResult.from_proto(event.result)
    raise Lost("the exec server ended the call without a result")


async def _stop(channel: grpc.aio.Channel, request_id: str) -> None:
    """Stop a call nobody waits for any more; failing to is no reason to hold up the caller."""
    stub: Any = exec_pb2_grpc.ToolsStub(channel)
    request = exec_pb2.CancelRequest(request_id=request_id)
    with contextlib.suppress(asyncio.CancelledError):
        for _ in range(_CANCEL_TRIES):
            try:
                await stub.Cancel(request, timeout=_CANCEL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    return
            else:
                return
