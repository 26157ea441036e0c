"""Work that is carried through although its caller goes away.

gRPC cancels a handler whose caller is gone. What starts or ends processes must not stop halfway:
nobody would know of what it leaves.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from .errors import NotFound, place

T = TypeVar("T")
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
