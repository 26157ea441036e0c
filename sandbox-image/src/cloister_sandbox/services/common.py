"""What the services share."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc

from ..authorize import abort
from ..errors import Busy, CallError, InvalidField, Unavailable, place
from ..lacking import FULL, MEMORY, lacked
from ..state import Phase, ServerState

MAX_ID = 128
"""Characters of an id that a caller chooses."""
log = logging.getLogger(__name__)


def unforeseen(method: str, error: Exception) -> CallError:
    """The failure of a call for an error that no handler foresaw; logged by its kind and place."""
    if isinstance(error, OSError) and error.errno in FULL:
        return Busy("DISK_FULL", "no space is left on the sandbox's disk", 5.0, "disk")
    if what := lacked(error):
        why = f"the sandbox has no more {what}"
        return Busy("OUT_OF_RESOURCES", why, 1.0, "memory" if what == MEMORY else "processes")
    file, line = place(error)
    log.error("%s: %s in %s, line %d", method, type(error).__name__, file, line)
    return CallError("UNFORESEEN", "the server failed in a way that was not foreseen")


def _failure(method: str, error: Exception) -> CallError:
    """What the caller is told of an error.

    The error loses the frames it came through. They hold the request, and some of them the task or
    future that holds the error: such a circle would keep a large request until the collector comes
    by.
    """
    failure = error if isinstance(error, CallError) else unforeseen(method, error)
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return failure


def unary(method: Callable[[Any, Any, Any], Awaitable[Any]]) -> Callable[[Any, Any, Any], Any]:
    """Let a handler raise CallError; the caller gets its status and details.

    Any other error becomes a status too, without its words.
    """

    @functools.wraps(method)
    async def guarded(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            return await abort(context, _failure(method.__name__, error))

    return guarded


async def _write(context: Any, message: Any) -> None:
    try:
        await context.write(message)
    except grpc.aio.InternalError:
        # The caller left while this waited for it: nobody hears an error.
        raise asyncio.CancelledError from None


def streaming(
    method: Callable[[Any, Any, Any], AsyncIterator[Any]],
) -> Callable[[Any, Any, Any], Any]:
    """The same for a handler that answers with a stream.

    The messages are written here, one generator less for each to pass through, and the handler's
    is closed as soon as the caller is gone.
    """

    @unary
    @functools.wraps(method)
    async def guarded(self: Any, request: Any, context: Any) -> None:
        async with contextlib.aclosing(cast("Any", method(self, request, context))) as messages:
            async for each in messages:
                await _write(context, each)

    return guarded


def concluding(
    *conclusions: str,
) -> Callable[[Callable[[Any, Any, Any], AsyncIterator[Any]]], Callable[[Any, Any, Any], Any]]:
    """The same for a stream of events whose last one is known by its kind, one of `conclusions`.

    That one is the handler's answer, which gRPC sends together with the status: a write, and a turn
    of the event loop, less for each call.
    """

    def decorate(
        method: Callable[[Any, Any, Any], AsyncIterator[Any]],
    ) -> Callable[[Any, Any, Any], Any]:
        @unary
        @functools.wraps(method)
        async def guarded(self: Any, request: Any, context: Any) -> Any:
            async with contextlib.aclosing(cast("Any", method(self, request, context))) as events:
                async for each in events:
                    if each.WhichOneof("event") in conclusions:
                        return each
                    # gRPC serializes the answer alone where it expects nothing else.
                    await _write(context, each.SerializeToString())
            raise RuntimeError("a stream without its last event")

        guarded.concludes = True  # type: ignore[attr-defined]
        return guarded

    return decorate


def require_claimed(state: ServerState, *, known: bool = False) -> None:
    """Raise Unavailable unless a session owns the pod.

    What is `known` was begun before: while the pod is drained it may still be attached to, for the
    drain waits for its end, and its caller may have lost the connection meanwhile.
    """
    if state.phase is Phase.DRAINING:
        if known:
            return
        raise Unavailable("DRAINING", "this sandbox is ending and takes no new calls")
    if state.phase is not Phase.CLAIMED:
        raise Unavailable("NOT_CLAIMED", "no session owns this sandbox yet")


def sendable(text: str) -> str:
    """Text as a message can carry it: protobuf refuses lone surrogates."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def require_length(field: str, value: str, longest: int) -> None:
    """Raise InvalidField unless 1 <= len(value) <= longest."""
    if not 1 <= len(value) <= longest:
        raise InvalidField(field, f"must have 1 to {longest} characters, has {len(value)}")
