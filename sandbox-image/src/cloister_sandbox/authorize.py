"""Who may call what, decided from the caller's certificate before any handler runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import grpc

from cloister_api.wire import MOST, Malformed, careful

from .answers import Answers
from .errors import Busy, CallError, Forbidden, InvalidField
from .nodelay import Connections
from .state import ServerState

OPERATOR = "operator:cloister"
OPERATOR_ONLY = frozenset(
    f"/cloister.exec.v1.Runtime/{name}"
    for name in ("Claim", "Probe", "PackageSources", "Prepare", "Drain", "Trust")
)
BULK = frozenset(f"/cloister.exec.v1.Files/{name}" for name in ("Download", "Upload"))
"""Calls that others go before."""
HEAVY = {
    f"/cloister.exec.v1.{name}": at_once
    for name, at_once in (
        ("Files/ReadText", 32),
        ("Files/Glob", 8),
        ("Processes/List", 8),
        ("Shells/List", 8),
    )
}
"""Calls whose answers can be large, and how many of them are made and sent at once."""
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_KINDS: dict[bool, Callable[..., Handler]] = {
    False: grpc.stream_unary_rpc_method_handler,
    True: grpc.stream_stream_rpc_method_handler,
}
"""By whether the response is a stream."""


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


_Decoder: TypeAlias = Callable[[bytes], Any]


def _lenient(decode: _Decoder | None) -> _Decoder | None:
    """A decoder that never raises; None, the raw bytes, stays None."""
    if decode is None:
        return None
    return careful(
        decode,
        functools.partial(InvalidField, "request", f"has more than {MOST} fields"),
        functools.partial(InvalidField, "request", "is not a message of this call's type"),
    )


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

        decode = _lenient(handler.request_deserializer)
        single = not handler.request_streaming
        answers = Answers(HEAVY[method]) if method in HEAVY else None

        async def checked(request: Any, context: Context) -> Any:
            if self._connections.needed:
                self._connections.look(context.peer())
            if not decide(peer_uris(context.auth_context()), method, self._state.session_uid):
                await abort(
                    context,
                    Forbidden("NOT_YOUR_SANDBOX", "this certificate may not make this call here"),
                )
            if single:
                request = await context.read()
                if isinstance(request, Malformed):
                    await abort(context, request.error())
                if request is grpc.aio.EOF:
                    await abort(context, InvalidField("request", "is missing"))
            if answers is not None:
                await _room(answers, context)
            if method in BULK:
                return await inner(request, context)
            with self._state.pace:
                return await inner(request, context)

        # One that concludes writes to its context too, and returns the last message.
        streams = handler.response_streaming and not getattr(inner, "concludes", False)
        # A single request is asked for like the messages of a stream, when its caller is known:
        # whoever has a certificate of the CA can send one of the largest size.
        return _KINDS[bool(streams)](
            checked,
            request_deserializer=decode,
            response_serializer=handler.response_serializer,
        )


async def _room(answers: Answers, context: Context) -> None:
    """Wait until one more answer may be sent; before it is made, which takes as much memory."""
    try:
        await answers.hold(context)
    except Busy as error:
        await abort(context, error)
