"""Work that is carried through although its caller goes away.

gRPC cancels a handler whose caller is gone. What starts or ends processes must not stop halfway:
nobody would know of what it leaves.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeAlias, TypeVar

from cloister_api.cancelling import being_cancelled

from .errors import NotFound, place

T = TypeVar("T")
Watch: TypeAlias = Callable[[], Awaitable[None]]
AGAIN_SECONDS = 1.0
"""Before a watch that has ended begins anew."""
log = logging.getLogger(__name__)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; it goes on, and fails unheard, when the caller goes away."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)


async def each_to_its_end(
    end: Callable[[str], Coroutine[Any, Any, None]], ids: Iterable[str]
) -> None:
    """End all of these at once. One that its caller has ended meanwhile, or that fails, keeps no
    other from its end, nor who waits for this.
    """
    for each in await asyncio.gather(*map(end, ids), return_exceptions=True):
        if isinstance(each, Exception) and not isinstance(each, NotFound):
            log.error("an end failed: %s in %s, line %d", type(each).__name__, *place(each))


async def for_ever(watch: Watch) -> None:
    """Run what has no end until this is cancelled; where it ends, that is told and it begins anew.

    Also where it was not cancelled itself, but what it waited for.
    """
    while True:
        try:
            await watch()
            why = "it returned"
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            why = "what it waited for was cancelled"
        except Exception as error:
            file, line = place(error)
            why = f"{type(error).__name__} in {file}, line {line}"
        log.error("%s begins anew: %s", watch.__module__, why)
        await asyncio.sleep(AGAIN_SECONDS)
