"""What the services share."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ..authorize import abort
from ..errors import CallError, InvalidField, Unavailable
from ..state import Phase, ServerState


def unary(method: Callable[[Any, Any, Any], Awaitable[Any]]) -> Callable[[Any, Any, Any], Any]:
    """Let a handler raise CallError; the caller gets its status and details."""

    @functools.wraps(method)
    async def guarded(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except CallError as error:
            return await abort(context, error)

    return guarded


def streaming(
    method: Callable[[Any, Any, Any], AsyncIterator[Any]],
) -> Callable[[Any, Any, Any], Any]:
    """The same for a handler that answers with a stream.

    The messages are written here, one generator less for each to pass through, and the handler's
    is closed as soon as the caller is gone.
    """

    @functools.wraps(method)
    async def guarded(self: Any, request: Any, context: Any) -> None:
        messages: Any = method(self, request, context)
        try:
            async with contextlib.aclosing(messages):
                async for each in messages:
                    await context.write(each)
        except CallError as error:
            await abort(context, error)

    return guarded


def require_claimed(state: ServerState) -> None:
    """Raise Unavailable unless a session owns the pod."""
    if state.phase is Phase.DRAINING:
        raise Unavailable("DRAINING", "this sandbox is ending and takes no new calls")
    if state.phase is not Phase.CLAIMED:
        raise Unavailable("NOT_CLAIMED", "no session owns this sandbox yet")


def require_length(field: str, value: str, longest: int) -> None:
    """Raise InvalidField unless 1 <= len(value) <= longest."""
    if not 1 <= len(value) <= longest:
        raise InvalidField(field, f"must have 1 to {longest} characters, has {len(value)}")
