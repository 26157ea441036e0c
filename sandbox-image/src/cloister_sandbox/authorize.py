"""Who may call what, decided from the caller's certificate before any handler runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from .errors import CallError, Forbidden, InvalidField
from .state import ServerState

OPERATOR = "operator:cloister"
OPERATOR_ONLY = frozenset(
    f"/cloister.exec.v1.Runtime/{name}" for name in ("Claim", "Probe", "Drain")
)
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def decide(callers: Iterable[str], method: str, session_uid: str) -> bool:
    """Whether a caller with these certificate URIs may call the method.

    The operator may call everything; the session that owns the pod everything that is not the
    operator's alone; nobody else anything. `session_uid` is empty before the claim.
    """
    names = set(callers)
    if OPERATOR in names:
        return True
    return bool(session_uid) and f"session:{session_uid}" in names and method not in OPERATOR_ONLY


def peer_uris(auth_context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """The URIs of the peer's certificate, as gRPC read them."""
    return [each.decode(errors="replace") for each in auth_context.get("peer_uri", ())]


async def abort(context: Context, error: CallError) -> None:
    """End the call with the error's status and details."""
    context.set_trailing_metadata((("grpc-status-details-bin", error.status_details()),))
    await context.abort(error.code, error.message)


class _Malformed:
    """In place of a request that cannot be decoded: gRPC itself would fail the call with UNKNOWN.

    Among the frames of a stream whoever looks at it raises what a wrong field raises.
    """

    @staticmethod
    def error() -> InvalidField:
        """What the caller is told."""
        return InvalidField("request", "is not a message of this call's type")

    def __getattr__(self, name: str) -> Any:
        raise self.error()


def _lenient(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A decoder that never raises; None, the raw bytes, stays None."""
    if decode is None:
        return None

    def decoded(raw: bytes) -> Any:
        try:
            return decode(raw)
        except DecodeError:
            return _Malformed()

    return decoded


class Authorizer(grpc.aio.ServerInterceptor):
    """Refuses callers that `decide` refuses, for every method of every service."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._guarded(handler, handler_call_details.method)

    def _guarded(self, handler: Handler, method: str) -> Handler:
        async def check(context: Context) -> None:
            callers = peer_uris(context.auth_context())
            if not decide(callers, method, self._state.session_uid):
                await abort(
                    context,
                    Forbidden("NOT_YOUR_SANDBOX", "this certificate may not make this call here"),
                )

        parts: dict[str, Any] = {
            "request_deserializer": _lenient(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            inner_stream: Any = handler.stream_stream or handler.unary_stream

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                await check(context)
                if isinstance(request, _Malformed):
                    await abort(context, _Malformed.error())
                async for each in inner_stream(request, context):
                    yield each

            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(stream, **parts)
            return grpc.unary_stream_rpc_method_handler(stream, **parts)
        inner: Any = handler.stream_unary or handler.unary_unary

        async def unary(request: Any, context: Context) -> Any:
            await check(context)
            if isinstance(request, _Malformed):
                await abort(context, _Malformed.error())
            return await inner(request, context)

        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(unary, **parts)
        return grpc.unary_unary_rpc_method_handler(unary, **parts)
