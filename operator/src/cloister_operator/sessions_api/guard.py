"""What surrounds every call: a place, the caller, the rights, the status, the figures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, NoReturn, TypeAlias

import grpc

from cloister_api.cancelling import being_cancelled

from ..api.backend import Caller
from ..logs import about
from ..metrics import SESSIONS_API_CALLS, SESSIONS_API_SECONDS
from ..sandboxes import clean
from . import translate
from .auth import CALLER, RIGHTS, Auth, whose_share
from .doorkeeper import Doorkeeper, of_peer
from .forwarding import Forwarder, Relayed
from .limits import RateLimits
from .places import Places
from .status import Busy, CallError, Forbidden, Unavailable, WrongState, from_error

SERVICE: Final = "/cloister.sessions.v1.Sessions/"
MAX_CALLS: Final = 768
MAX_WATCHES: Final = 384
MAX_RELAYS: Final = 384
RECHECK_SECONDS: Final = 30.0
"""How often a stream asks again whether its caller is still known and may have it."""
FIRST_SECONDS: Final = 10.0
"""How long a stream of requests may take to say what it wants."""
HEARD_SECONDS: Final = 1.0
"""How long a refusal waits for what a stream of requests says first. Callers write that without
waiting for an answer; one that is refused meanwhile fails in writing, and its gRPC library may say
only that, in place of why.
"""
_NAMELESS = frozenset({"Create", "List"})
"""Methods whose rights are asked without a session's name."""
_NAME_OPTIONAL = frozenset({"Create", "List", "Watch"})
_LONGEST_NAME = 253
_LOGGED = frozenset({"Create", "Renew", "Suspend", "Resume", "Delete", "Relay"})

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
log = logging.getLogger(__name__)


class _Call:
    """How one call went, for figures and for the log."""

    def __init__(self, method: str, request: Any) -> None:
        self._fields: dict[str, str] = {}
        self.about(request)
        self.caller: Caller | None = None
        self._method = method
        self._counts = True
        self._code = grpc.StatusCode.CANCELLED
        self._started = time.monotonic()

    def about(self, request: Any) -> None:
        """What the call names, which nobody has checked yet."""
        parts = {"session": "name", "environment": "environment", "namespace": "namespace"}
        self._fields = {
            field: clean(getattr(request, each, ""), _LONGEST_NAME) for field, each in parts.items()
        }

    def done(self, request: Any, answer: Any) -> None:
        """It succeeded."""
        self._code = grpc.StatusCode.OK
        if self._method in _LOGGED:
            name = request.name or getattr(getattr(answer, "session", None), "name", "")
            with about(**self._fields | {"session": name}):
                log.info("%s %s/%s by %s", self._method, request.namespace, name, self._who())

    def forwarded(self) -> None:
        """The leader answered it, and counts it."""
        self._counts = False

    async def fail(self, context: Context, error: BaseException) -> NoReturn:
        """End the call with the error's status and details, unless its caller has left.

        gRPC takes every cancellation for that: of one that is not, a caller would hear nothing.
        """
        if isinstance(error, asyncio.CancelledError) and being_cancelled():
            raise error
        with about(**self._fields):
            failed: CallError = from_error(error)
            if isinstance(failed, Forbidden):
                namespace = self._fields["namespace"]
                log.warning(
                    "%s in namespace %s refused to %s", self._method, namespace, self._who()
                )
        self._code = failed.code
        if isinstance(failed, Relayed):
            self.forwarded()
        context.set_trailing_metadata((("grpc-status-details-bin", failed.status_details()),))
        await context.abort(failed.code, failed.message)

    def count(self) -> None:
        """Record it."""
        if not self._counts:
            return
        SESSIONS_API_CALLS.labels(method=self._method, code=self._code.name).inc()
        elapsed = time.monotonic() - self._started
        SESSIONS_API_SECONDS.labels(method=self._method).observe(elapsed)

    def _who(self) -> str:
        return clean(self.caller.username, 256) if self.caller else "somebody unknown"


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler; a method of another service, or one without rights, is not served."""

    def __init__(
        self,
        auth: Auth,
        *,
        max_calls: int = MAX_CALLS,
        max_watches: int = MAX_WATCHES,
        max_relays: int = MAX_RELAYS,
        recheck_seconds: float = RECHECK_SECONDS,
        limits: RateLimits | None = None,
        forwarder: Forwarder | None = None,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        """`limits`: of each caller's calls; `forwarder`: to the leader, where there are several;
        `doorkeeper`: of the server's connections, with bounds of its own.
        """
        self._auth = auth
        self._limits = limits
        self._forwarder = forwarder
        self._places = Places(
            {
                "calls": max_calls,
                "watches": max_watches,
                "relays": max_relays,
                "refusals": max_relays,
            }
        )
        self._recheck_seconds = recheck_seconds
        self.doorkeeper = doorkeeper or Doorkeeper()
        """Told of each connection over which a valid token came, and of whose it is."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.rpartition("/")
        if handler is None or f"{service}/" != SERVICE or method not in RIGHTS:
            return None
        parts: dict[str, Any] = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.request_streaming:
            relay = self._relay(method, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(relay, **parts)
        if handler.response_streaming:
            stream = self._stream(method, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(stream, **parts)
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary), **parts
        )

    def _unary(self, method: str, inner: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            with self._observed(method, request) as seen:
                try:
                    with self._places.one("calls"):
                        await self._know(
                            seen, "calls", context, forwarded=self._forwarder is not None
                        )
                        with self._callers_place(seen, "calls"):
                            if self._forwarder is not None:
                                answer = await self._forwarder.call(method, request, context)
                                if answer is not None:
                                    # The leader writes the log, and asked all that is asked below.
                                    seen.forwarded()
                                    return answer
                            await self._admit(seen, method, request, context)
                            answer = await inner(request, context)
                except (Exception, asyncio.CancelledError) as error:
                    await seen.fail(context, error)
                seen.done(request, answer)
                return answer

        return call

    def _stream(self, method: str, inner: Any) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._observed(method, request) as seen:
                try:
                    with self._places.one("watches"):
                        await self._know(seen, "watches", context)
                        with self._callers_place(seen, "watches"):
                            recheck = await self._admit(seen, method, request, context)
                            # Headers at once: a caller with nothing to see yet knows that it
                            # watches.
                            await context.send_initial_metadata(())
                            async with contextlib.aclosing(inner(request, context)) as items:
                                async for each in _rechecked(items, recheck, self._recheck_seconds):
                                    yield each
                except (Exception, asyncio.CancelledError) as error:
                    await seen.fail(context, error)
                seen.done(request, None)

        return call

    def _relay(self, method: str, inner: Any) -> Any:
        async def call(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            with self._observed(method, None) as seen:
                first, asked = None, False
                try:
                    with self._places.one("relays"):
                        # Whom nobody knows is not waited for.
                        await self._know(seen, "relays", context)
                        with self._callers_place(seen, "relays"):
                            asked = True
                            first = await _first(requests)
                            seen.about(first)
                            recheck = await self._admit(seen, method, first, context)
                            async with contextlib.aclosing(
                                inner(_again(first, requests), context)
                            ) as items:
                                async for each in _rechecked(items, recheck, self._recheck_seconds):
                                    yield each
                except (Exception, asyncio.CancelledError) as error:
                    if not asked and isinstance(error, Exception):
                        # Of a flood not all are waited for.
                        with contextlib.suppress(Busy), self._places.one("refusals"):
                            await _heard(requests)
                    await seen.fail(context, error)
                seen.done(first, None)

        return call

    async def _admit(
        self, seen: _Call, method: str, request: Any, context: Context
    ) -> Callable[[], Awaitable[None]]:
        """Raise CallError unless the caller may; returns what asks all that once more."""
        name = getattr(request, "name", "")
        # As the Kubernetes API does: creating and listing have no name to be allowed for.
        asked = "" if method in _NAMELESS else name

        async def admit(*, again: bool = True) -> None:
            seen.caller = await self._authenticate(context)
            CALLER.set(seen.caller)
            if self._limits is not None and not again:
                self._limits.take(whose_share(seen.caller), method)
            translate.check_target(
                request.namespace, name, name_required=method not in _NAME_OPTIONAL
            )
            await self._auth.authorize(seen.caller, method, request.namespace, asked)

        await admit(again=False)
        return admit

    async def _authenticate(self, context: Context) -> Caller:
        """The caller; raises as Auth does. Their connection is then no stranger's."""
        metadata, far_end = tuple(context.invocation_metadata() or ()), of_peer(context.peer())
        caller = await self._auth.authenticate(metadata, far_end.address if far_end else "")
        if far_end:
            self.doorkeeper.heard(far_end, whose_share(caller))
        return caller

    async def _know(
        self, seen: _Call, kind: str, context: Context, *, forwarded: bool = False
    ) -> None:
        """Find out who calls, before they are given a place of their own: rights, too, take a while
        to ask for, and whoever has none must not keep others waiting meanwhile. While a token is
        asked about, its calls, of which there may be any number, have their address's share.

        What nobody's token asks is not `forwarded`: to the leader all of that comes from one
        address, which has few questions. A caller that cannot be known now is left to the leader.
        """
        with contextlib.ExitStack() as asked:
            if not self._auth.remembers(tuple(context.invocation_metadata() or ())):
                far_end = of_peer(context.peer())
                asked.enter_context(self._places.of(f"at {far_end and far_end.address}", kind))
            asked.enter_context(contextlib.suppress(*((Unavailable,) if forwarded else ())))
            seen.caller = await self._authenticate(context)

    def _callers_place(self, seen: _Call, kind: str) -> contextlib.AbstractContextManager[None]:
        return self._places.of(whose_share(seen.caller) if seen.caller else "", kind)

    @contextlib.contextmanager
    def _observed(self, method: str, request: Any) -> Iterator[_Call]:
        seen = _Call(method, request)
        try:
            yield seen
        finally:
            seen.count()


async def _first(requests: AsyncIterator[Any]) -> Any:
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            return await anext(requests)
    except (TimeoutError, StopAsyncIteration):
        raise WrongState("NO_REQUEST", "the stream did not say what it wants") from None


async def _heard(requests: AsyncIterator[Any]) -> None:
    """Take what a stream that is refused says first; it holds no relay's place meanwhile."""
    with contextlib.suppress(TimeoutError, StopAsyncIteration):
        async with asyncio.timeout(HEARD_SECONDS):
            await anext(requests)


async def _again(first: Any, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for each in requests:
        yield each


async def _rechecked(
    items: AsyncIterator[Any], check: Callable[[], Awaitable[None]], seconds: float
) -> AsyncIterator[Any]:
    """The items, for as long as `check` does not raise; it is asked every `seconds`."""
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    pending: asyncio.Task[Any] | None = None
    try:
        while True:
            if loop.time() >= due:
                await check()
                due = loop.time() + seconds
            if pending is None:
                pending = asyncio.ensure_future(anext(items, _END))
            await asyncio.wait({pending}, timeout=max(0.0, due - loop.time()))
            if not pending.done():
                continue
            item, pending = pending.result(), None
            if item is _END:
                return
            yield item
    finally:
        if pending is not None:
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pending


_END = object()
