"""The calls of a session: each runs once, whoever asks and however often.

A call runs in a task of its own, so that losing its stream never stops it. The same id attaches to
it or gets the kept result; another payload under the same id is refused.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .errors import Busy, IdConflict, NotFound
from .shell import Cancel
from .toolset.results import ToolResult
from .wakes import wake, woken

MAX_RUNNING = 256
MAX_RUNNING_BYTES = 128 * 1024 * 1024
"""Of the inputs of calls under way, many of which may wait behind one that takes long."""
KEEP_RESULTS = 256
KEEP_BYTES = 64 * 1024 * 1024
KEEP_SECONDS = 600.0
LOST = ToolResult("the server lost track of this call", is_error=True)


@dataclass
class Call:
    """One call, running or finished."""

    digest: bytes
    cancel: Cancel
    task: asyncio.Task[None] | None = None
    result: ToolResult | None = None
    """None while it runs."""
    finished_at: float = 0.0

    def __post_init__(self) -> None:
        self._followers: set[asyncio.Future[None]] = set()

    @property
    def running(self) -> bool:
        """Whether it has no result yet."""
        return self.result is None

    def stop(self) -> None:
        """Ask its tool to end."""
        wake(self.cancel)

    async def ended(self, seconds: float) -> ToolResult | None:
        """Its result as soon as there is one; None when there is none after so long."""
        if self.result is None:
            follower = asyncio.get_running_loop().create_future()
            self._followers.add(follower)
            try:
                await woken(follower, seconds)
            finally:
                self._followers.discard(follower)
        return self.result

    def end(self, result: ToolResult) -> None:
        """It is over; whoever follows it hears of it."""
        self.result = result
        for follower in self._followers:
            wake(follower)


class Calls:
    """Registry of calls by request id, bounded in number, bytes and time."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._kept: deque[str] = deque()
        self._running = 0
        self._running_bytes = 0
        self._kept_bytes = 0

    @property
    def running(self) -> int:
        """Calls under way."""
        return self._running

    def start(
        self,
        request_id: str,
        payload: bytes,
        work: Callable[[Cancel], Awaitable[ToolResult]],
    ) -> tuple[Call, bool]:
        """The call of this id, and whether it existed before.

        Raises IdConflict when the id stands for another payload, and Busy at the bound.
        """
        self._expire()
        digest = hashlib.blake2b(payload, digest_size=32).digest()
        known = self._calls.get(request_id)
        if known is not None:
            if known.digest != digest:
                raise IdConflict(
                    "ID_CONFLICT",
                    "request_id is in use for another tool or input",
                    request_id=request_id,
                )
            return known, True
        if self._running >= MAX_RUNNING:
            why = f"{MAX_RUNNING} calls are under way"
            raise Busy("TOO_MANY_CALLS", why, 0.5, "calls", MAX_RUNNING)
        size = len(payload)
        if self._running and self._running_bytes + size > MAX_RUNNING_BYTES:
            why = "calls with large inputs are under way"
            raise Busy("TOO_MANY_CALLS", why, 0.5, "call-bytes", MAX_RUNNING_BYTES)
        cancel: Cancel = asyncio.get_running_loop().create_future()

        call = Call(digest, cancel)

        async def run() -> None:
            result = LOST
            try:
                result = await work(cancel)
            finally:
                self._running_bytes -= size
                self._finished(request_id, call, result)

        self._calls[request_id] = call
        self._running += 1
        self._running_bytes += size
        call.task = asyncio.create_task(run())
        return call, False

    def has(self, request_id: str) -> bool:
        """Whether a call of this id runs or its result is kept."""
        return request_id in self._calls

    def cancel(self, request_id: str) -> None:
        """Ask a call to stop; raises NotFound for an id that is unknown or forgotten."""
        call = self._calls.get(request_id)
        if call is None:
            raise NotFound("UNKNOWN_ID", "no such call", request_id=request_id)
        call.stop()

    async def settle(self, grace: float) -> None:
        """Wait until no call is under way, at most `grace` seconds."""
        tasks = [call.task for call in self._calls.values() if call.running and call.task]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)

    def stop_all(self) -> None:
        """Ask every call that is under way to end."""
        for call in self._calls.values():
            if call.running:
                call.stop()

    def _finished(self, request_id: str, call: Call, result: ToolResult) -> None:
        self._running -= 1
        call.finished_at = time.monotonic()
        call.end(result)
        self._kept_bytes += result.size
        self._kept.append(request_id)
        self._expire()

    def _expire(self) -> None:
        now = time.monotonic()
        while self._kept:
            call = self._calls[self._kept[0]]
            old = now - call.finished_at > KEEP_SECONDS
            if not (old or len(self._kept) > KEEP_RESULTS or self._kept_bytes > KEEP_BYTES):
                break
            del self._calls[self._kept.popleft()]
            if call.result is not None:
                self._kept_bytes -= call.result.size
