"""What is known of sessions that wait for their pods: since when, and what was tried."""

import asyncio
import math
from collections.abc import Collection

from ..api.conditions import timestamp
from ..api.pod import PodView
from ..api.session import Phase, SessionObject
from ..metrics import CLAIM_SECONDS, CLAIMS, OK
from .context import Context


class Starts:
    """What one process knows, by the UIDs of sessions; a restart forgets it, and harms only figures
    and patience.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._since: dict[str, float] = {}
        self._warm: set[str] = set()
        self._cold: set[str] = set()
        self._refused: dict[str, int] = {}
        """How many pods refused it."""
        self._silent: dict[str, tuple[str, float]] = {}
        """The UID of a pod that did not answer, and since when."""

    def waits(self, session: SessionObject) -> None:
        """The session waits for a pod."""
        self._since.setdefault(session.metadata.uid, _seconds())

    def waited(self, session: SessionObject) -> float:
        """Seconds since it was first seen waiting; without end if it never was."""
        return _seconds() - self._since.get(session.metadata.uid, -math.inf)

    def warm(self, session: SessionObject) -> None:
        """It has claimed a warm pod."""
        self._warm.add(session.metadata.uid)

    def cold(self, session: SessionObject) -> None:
        """A pod is about to be made for it."""
        self._cold.add(session.metadata.uid)

    def is_cold(self, session: SessionObject) -> bool:
        """Whether this process has made a pod for it, or was about to."""
        return session.metadata.uid in self._cold

    def refused(self, session: SessionObject) -> int:
        """A pod has refused it; the answer is how many have."""
        uid = session.metadata.uid
        self._refused[uid] = self._refused.get(uid, 0) + 1
        return self._refused[uid]

    def silent(self, session: SessionObject, pod: PodView) -> float:
        """The pod does not answer; the answer is for how many seconds by now."""
        uid = session.metadata.uid
        whose, since = self._silent.get(uid, ("", 0.0))
        if whose != pod.uid:
            since = _seconds()
            self._silent[uid] = pod.uid, since
        return _seconds() - since

    def over(self, session: SessionObject, pod: PodView) -> None:
        """It runs in the pod, or its caller has been told so."""
        uid = session.metadata.uid
        start = _start_of(session, pod, uid in self._warm)
        CLAIMS.labels(*self._context.series(*session.environment_key), start, OK).inc()
        since = self._since.get(uid)
        if since is not None:
            CLAIM_SECONDS.labels(start).observe(_seconds() - since)
        self._forget(uid)

    def ended(self, session: SessionObject) -> None:
        """It is deleted."""
        uid = session.metadata.uid
        if uid in self._since and session.status.phase is Phase.PENDING:
            CLAIMS.labels(*self._context.series(*session.environment_key), "none", "deleted").inc()
        self._forget(uid)

    def keep(self, present: Collection[str]) -> None:
        """Forget all sessions but those of these UIDs."""
        known = (self._since, self._warm, self._cold, self._refused, self._silent)
        for uid in set[str]().union(*known).difference(present):
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        self._since.pop(uid, None)
        self._warm.discard(uid)
        self._cold.discard(uid)
        self._refused.pop(uid, None)
        self._silent.pop(uid, None)


def _start_of(session: SessionObject, pod: PodView, known_warm: bool) -> str:
    """How a session got its pod, also where another operator gave it."""
    if session.status.started_at is not None:
        return "resumed"
    # A pod made for a session is younger than it; the API server's times are whole seconds.
    older = timestamp(pod.created) < (session.metadata.creation_timestamp or "")
    return "warm" if known_warm or older else "cold"


def _seconds() -> float:
    """The event loop's clock."""
    return asyncio.get_running_loop().time()
