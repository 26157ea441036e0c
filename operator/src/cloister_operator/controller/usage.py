"""Adds up how long the sessions of each Environment ran and worked.

A session's own status is exact to the second whatever happened to operators; these figures are for
graphs. They count what this process saw: what ran before it started was counted by another, but for
what that one did not live to tell Prometheus.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..api.session import SessionObject
from ..cache import Key
from ..metrics import SESSION_ACTIVE_SECONDS, SESSION_RUNNING_SECONDS
from ..plan import meters


@dataclass
class _Counted:
    session: SessionObject
    running: timedelta
    active: int


class Usage:
    """Listens to the mirror of Sessions, and counts between `begin` and `end`: who leads does."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._counts = False
        self._counted: dict[str, _Counted] = {}
        """By UID, of sessions that have not ended."""

    def begin(self) -> None:
        """Count from now on; another process has counted what was before."""
        now = self._clock()
        for each in self._counted.values():
            status = each.session.status
            each.running, each.active = meters.ran(status, now), status.active_seconds
        self._counts = True

    def end(self) -> None:
        """Count no more."""
        self._counts = False

    def changed(self, before: SessionObject | None, after: SessionObject | None) -> None:
        """A Session was made, changed or deleted (None)."""
        session = after or before
        if session is None:
            return
        now, uid = self._clock(), session.metadata.uid
        if before and before.metadata.uid != uid:
            self._end(before, now)
        known = self._counted.get(uid)
        if known is None:
            if after and not after.status.phase.ended:
                running, active = meters.ran(after.status, now), after.status.active_seconds
                self._counted[uid] = _Counted(after, running, active)
            return
        if after is None:
            self._end(session, now)
            return
        known.session = after
        self._count(known, now)
        if after.status.phase.ended:
            del self._counted[uid]

    def count(self) -> None:
        """Count what has run by now."""
        now = self._clock()
        for each in self._counted.values():
            if each.session.status.running_since:
                self._count(each, now)

    def environments(self) -> set[Key]:
        """Environments that have sessions which may still run."""
        return {each.session.environment_key for each in self._counted.values()}

    def _end(self, session: SessionObject, now: datetime) -> None:
        known = self._counted.pop(session.metadata.uid, None)
        if known:
            self._count(known, now)

    def _count(self, known: _Counted, now: datetime) -> None:
        status, key = known.session.status, known.session.environment_key
        ran = meters.ran(status, now)
        # Rounding at the end of a run, or another's clock, may take back some of it.
        if ran > known.running:
            if self._counts:
                more = (ran - known.running).total_seconds()
                SESSION_RUNNING_SECONDS.labels(*key).inc(more)
            known.running = ran
        if status.active_seconds > known.active:
            if self._counts:
                SESSION_ACTIVE_SECONDS.labels(*key).inc(status.active_seconds - known.active)
            known.active = status.active_seconds
