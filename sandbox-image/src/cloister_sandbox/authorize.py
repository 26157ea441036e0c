"""Who may call what, decided from the caller's certificate before any handler runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from .errors import CallError, Forbidden, InvalidField
from .nodelay import Connections
from .state import ServerState

OPERATOR = "operator:cloister"
OPERATOR_ONLY = frozenset(
    f"/cloister.exec.v1.Runtime/{name}"
    for name in ("Claim", "Probe", "PackageSources", "Prepare", "Drain", "Trust")
)
BULK = frozenset(f"/cloister.exec.v1.Files/{name}" for name in ("Download", "Upload"))
"""Calls that others go before."""
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_KINDS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether the request is a stream, and whether the response is."""


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


class Authorizer(grpc.GenericRpcHandler):
    """Refuses callers that `decide` refuses, for every method of every service added to it.

    It takes the services in place of the server, which gets nothing but this: so nothing is
    served without the check, and no call pays for an interceptor.
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._services: list[grpc.GenericRpcHandler] = []
        self._guards: dict[str, Handler] = {}
        self._connections = Connections()

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """What generated code calls to add a service."""
        self._services.extend(handlers)

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, Handler]) -> None:
        """What generated code calls as well; these are the same handlers once more."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The guarded handler of a method; None for one that no service has."""
        method = handler_call_details.method
        guard = self._guards.get(method)
        if guard is None:
            found = (each.service(handler_call_details) for each in self._services)
            handler = next((each for each in found if each is not None), None)
            if handler is not None:
                guard = self._guards[method] = self._guarded(handler, method)
        return guard

    def _guarded(self, handler: Handler, method: str) -> Handler:
        """The handler behind the check. One that answers with a stream writes to its context."""
        inner: Any = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        async def checked(request: Any, context: Context) -> Any:
            if self._connections.needed:
                self._connections.look(context.peer())
            if not decide(peer_uris(context.auth_context()), method, self._state.session_uid):
                await abort(
                    context,
                    Forbidden("NOT_YOUR_SANDBOX", "this certificate may not make this call here"),
                )
            if isinstance(request, _Malformed):
                await abort(context, _Malformed.error())
            return await inner(request, context)

        async def first(request: Any, context: Context) -> Any:
            with self._state.pace:
                return await checked(request, context)

        # One that concludes writes to its context too, and returns the last message.
        streams = handler.response_streaming and not getattr(inner, "concludes", False)
        kind = _KINDS[bool(handler.request_streaming), bool(streams)]
        return kind(
            checked if method in BULK else first,
            request_deserializer=_lenient(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
