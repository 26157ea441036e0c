"""Results kept under the ids that callers chose, so that a repeated call is carried out once."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import Busy, IdConflict

T = TypeVar("T")
KEPT_SECONDS = 600.0
MAX_KEPT = 128


@dataclass
class _Kept(Generic[T]):
    digest: bytes
    task: "asyncio.Task[T]"
    began: float


class Replays(Generic[T]):
    """Calls under way and results of the last ten minutes; used on the event loop only."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept[T]] = {}

    async def run(self, request_id: str, payload: bytes, work: Callable[[], Awaitable[T]]) -> T:
        """The result for an id: of the call under way, kept from before, or of `work` now.

        Losing the caller does not stop the work. Failures are not kept. An empty id is never kept.
        Raises IdConflict for another payload under the id, Busy when too many calls are under way.
        """
        now = time.monotonic()
        for name in [name for name, each in self._kept.items() if now - each.began > KEPT_SECONDS]:
            if self._kept[name].task.done():
                del self._kept[name]
        # Not the payload itself: a hundred large ones would be kept for as long as the results.
        digest = hashlib.blake2b(payload, digest_size=32).digest()
        found = self._kept.get(request_id) if request_id else None
        if found is not None and found.digest != digest:
            why = "this request_id belongs to another call"
            raise IdConflict("ID_CONFLICT", why, request_id=request_id)
        if found is None:
            found = _Kept(digest, asyncio.ensure_future(_run(work)), now)
            if request_id:
                self._remember(request_id, found)
        return await asyncio.shield(found.task)

    def _remember(self, request_id: str, call: _Kept[T]) -> None:
        if len(self._kept) >= MAX_KEPT:
            oldest = next((name for name, each in self._kept.items() if each.task.done()), None)
            if oldest is None:
                call.task.cancel()
                why = f"{MAX_KEPT} calls are under way"
                raise Busy("TOO_MANY_CALLS", why, 1.0, "edits", MAX_KEPT)
            del self._kept[oldest]
        self._kept[request_id] = call
        call.task.add_done_callback(lambda task: self._forget_failure(request_id, task))

    def _forget_failure(self, request_id: str, task: "asyncio.Task[T]") -> None:
        kept = self._kept.get(request_id)
        failed = task.cancelled() or task.exception() is not None
        if failed and kept is not None and kept.task is task:
            del self._kept[request_id]


async def _run(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
