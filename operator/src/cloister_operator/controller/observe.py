"""What the process says of itself: liveness, readiness, gauges."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable

from .. import metrics, names
from ..api import conditions
from ..api.environment import EnvironmentObject
from ..api.session import Phase, SessionObject
from ..cache import Key
from ..metrics import (
    ENVIRONMENT_CONDITION,
    POOL_FAILURES,
    POOL_PODS,
    POOL_WANTED_PODS,
    QUEUE_AGE_SECONDS,
    QUEUE_DEPTH,
    SESSIONS,
)
from ..plan.verdict import counts
from .context import Context

STUCK_SECONDS = 120.0
"""Keys that wait this long without one being handled: the queue is stuck."""
GAUGES_EVERY_SECONDS = 5.0
KEPT_LOOKS = 24
"""How often an Environment must be missed before its series go: for two minutes, in which
Prometheus reads the last of its counters.
"""

COUNTED_FAILURES = {
    "session": (
        *conditions.LOSSES,
        *(conditions.VOLUME_LOST, conditions.SESSION_REFUSED, conditions.SESSION_TOO_LARGE),
    ),
    "recovery": conditions.LOSSES,
    "pod": (
        *(conditions.SETUP_FAILED, conditions.POD_FAILED, conditions.SANDBOX_MISBEHAVES),
        *(conditions.NETWORK_NOT_ENFORCED, conditions.USER_NAMESPACE_MISSING),
    ),
}
"""By kind, the reasons that are counted from 0 on; a rarer one begins with its first."""


def begin(version: str) -> None:
    """Say which version runs, and let the counters of the process begin."""
    metrics.BUILD.labels(version).set(1)
    metrics.begin(COUNTED_FAILURES)


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
        """A sentence when keys wait and none is handled, though this process leads."""
        now = asyncio.get_running_loop().time()
        queue = self._context.queue
        if queue.progress != self._progress or not len(queue) or not queue.runs:
            self._progress, self._moved = queue.progress, now
        if now - self._moved > STUCK_SECONDS:
            return f"{len(queue)} keys wait, and none was handled for {STUCK_SECONDS:.0f} s"
        return None

    def ready(self) -> str | None:
        """A sentence until the mirrors are filled and the Sessions API listens."""
        return self.missing


class Gauges:
    """What there is, as gauges; and how long sessions ran, as counters.

    Only who leads has them, so that sums over the operator's pods count everything once.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._missed: dict[Key, int] = {}
        """By Environment that has series, how often in a row it was not there."""

    async def run(self) -> None:
        """Set them every few seconds; gone when cancelled."""
        usage = self._context.usage
        usage.begin()
        try:
            while True:
                usage.count()
                self.look()
                await asyncio.sleep(GAUGES_EVERY_SECONDS)
        finally:
            usage.end()
            metrics.forget_gauges()

    def look(self) -> None:
        """Set them now."""
        context = self._context
        environments = {each.key: each for each in context.environments.all()}
        for key, environment in environments.items():
            if key not in self._missed:
                metrics.begin_environment(*key)
            self._environment(key, environment)
        self._sessions(environments, context.sessions.all())
        self._forget(environments.keys() | context.usage.environments())
        QUEUE_DEPTH.set(len(context.queue))
        QUEUE_AGE_SECONDS.set(context.queue.age())

    def _environment(self, key: Key, environment: EnvironmentObject) -> None:
        context = self._context
        found = counts(context.pods.group(("environment", *key)), context.failures)
        for state, count in (
            (names.STATE_STARTING, found.starting),
            (names.STATE_WARM, found.ready),
            (names.STATE_CLAIMED, found.claimed),
            ("failed", found.failed),
        ):
            POOL_PODS.labels(*key, state).set(count)
        wanted = environment.status.pool.wanted or environment.spec.pool.size
        POOL_WANTED_PODS.labels(*key).set(wanted)
        POOL_FAILURES.labels(*key).set(context.failed_starts.get(key, 0))
        for each in environment.status.conditions:
            if each.status == "Unknown":
                of = dict(zip(("namespace", "environment"), key, strict=True))
                ENVIRONMENT_CONDITION.remove_by_labels(of | {"condition": each.type})
            else:
                ENVIRONMENT_CONDITION.labels(*key, each.type).set(each.status == "True")

    def _sessions(self, environments: Collection[Key], sessions: Iterable[SessionObject]) -> None:
        # A session may name any Environment: one that is not there must not become a label.
        found: Counter[tuple[Key, Phase]] = Counter()
        for each in sessions:
            found[self._context.series(*each.environment_key), each.status.phase] += 1
        nameless = [(each, "") for each in (*self._context.settings.sandbox_namespaces, "")]
        for key in (*environments, *nameless):
            for phase in Phase:
                SESSIONS.labels(*key, phase.value).set(found[key, phase])

    def _forget(self, present: Collection[Key]) -> None:
        for key in present:
            self._missed[key] = 0
        for key in [key for key in self._missed if key not in present]:
            self._missed[key] += 1
            if self._missed[key] > KEPT_LOOKS:
                metrics.forget_environment(*key)
                del self._missed[key]
