"""What the process says of itself: liveness, readiness, gauges."""

import asyncio
from collections import Counter

from .. import names
from ..api.session import Phase
from ..metrics import POOL_PODS, QUEUE_DEPTH, SESSIONS, forget_environment
from ..plan.pool import counts
from .context import Context

STUCK_SECONDS = 120.0
"""Keys that wait this long without one being handled: the queue is stuck."""
GAUGES_EVERY_SECONDS = 5.0


class Health:
    """api.backend.HealthState.

    An API server that is away makes the operator neither dead nor unready: a restart would lose
    what it knows and mend nothing.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._progress = -1
        self._moved = 0.0
        self.missing: str | None = "the operator is starting"
        """What start-up still waits for."""

    def live(self) -> str | None:
        """A sentence when keys wait and none is handled."""
        now = asyncio.get_running_loop().time()
        queue = self._context.queue
        if queue.progress != self._progress or not len(queue):
            self._progress, self._moved = queue.progress, now
        if now - self._moved > STUCK_SECONDS:
            return f"{len(queue)} keys wait, and none was handled for {STUCK_SECONDS:.0f} s"
        return None

    def ready(self) -> str | None:
        """A sentence until the mirrors are filled and the Sessions API listens."""
        return self.missing


async def keep_gauges(context: Context) -> None:
    """Set the gauges every few seconds, until cancelled."""
    known: set[tuple[str, str]] = set()
    while True:
        phases = Counter(session.status.phase for session in context.sessions.all())
        for phase in Phase:
            SESSIONS.labels(phase.value).set(phases[phase])
        present = set(context.environments)
        for key in known - present:
            forget_environment(*key)
        for key in present:
            found = counts(context.pods.group(("environment", *key)), context.failures)
            for state, count in (
                (names.STATE_STARTING, found.starting),
                (names.STATE_WARM, found.ready),
                (names.STATE_CLAIMED, found.claimed),
                ("failed", found.failed),
            ):
                POOL_PODS.labels(*key, state).set(count)
        known = present
        QUEUE_DEPTH.set(len(context.queue))
        await asyncio.sleep(GAUGES_EVERY_SECONDS)
