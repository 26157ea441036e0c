"""grpc.health.v1.Health.

The two messages have one field each, and are encoded by hand: the package with the generated ones
is not part of the sandbox image, and its names would clash with it where both are installed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from ..state import Phase, ServerState

NAME = "grpc.health.v1.Health"
SERVING = b"\x08\x01"
NOT_SERVING = b"\x08\x02"
SERVICE_UNKNOWN = b"\x08\x03"
_POLL = 0.5


class HealthHandler(grpc.GenericRpcHandler):
    """Check and Watch for the whole server (the empty service name)."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if handler_call_details.method == f"/{NAME}/Check":
            return grpc.unary_unary_rpc_method_handler(self._check)
        if handler_call_details.method == f"/{NAME}/Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch)
        return None

    def _status(self) -> bytes:
        ready = self._state.phase in (Phase.WARM, Phase.CLAIMED)
        return SERVING if ready else NOT_SERVING

    async def _check(self, request: bytes, context: Any) -> bytes:
        if request:
            await context.abort(grpc.StatusCode.NOT_FOUND, "only the whole server has a health")
        return self._status()

    async def _watch(self, request: bytes, context: Any) -> None:
        if request:
            await context.write(SERVICE_UNKNOWN)
        last = b""
        while True:
            status = SERVICE_UNKNOWN if request else self._status()
            if status != last and not request:
                await context.write(status)
            last = status
            await asyncio.sleep(_POLL)
