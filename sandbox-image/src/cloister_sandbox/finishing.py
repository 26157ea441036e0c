"""Work that is carried through although its caller goes away.

gRPC cancels a handler whose caller is gone. What starts or ends processes must not stop halfway:
nobody would know of what it leaves.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; it goes on, and fails unheard, when the caller goes away."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)
