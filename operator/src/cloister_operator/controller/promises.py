"""What callers of the Sessions API are told before a Session's status says it.

A Session that is made for a warm pod names it (`FIRST_POD`), and the pod's label names the Session.
When both are written and the exec server knows the session, it runs, whatever happens to this
process: its status follows from the two. So the caller is answered then, and the status is written
after that. Only the process that made the Session answers so early. Any other one, which may know
less, has to claim that very pod, and takes the session for lost when that pod is gone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .. import names
from ..api.pod import PodView
from ..api.session import FirstPod, Phase, SessionObject
from ..cache import Key, Store

_DOUBTFUL = 1000
"""Sessions of which it is not known whether they were made: of older ones nothing is known."""


@dataclass(frozen=True)
class Told:
    """What a caller was told: the session as it runs, and the pod that it runs in."""

    session: SessionObject
    pod: PodView


class Promises:
    """Sessions that this process made for a pod, until their status is written."""

    def __init__(self, sessions: Store[SessionObject], reserved: set[str]) -> None:
        """`reserved`: UIDs of the pods that nobody else may take."""
        self._sessions = sessions
        self._reserved = reserved
        self._made: dict[Key, FirstPod] = {}
        self._held: dict[Key, str] = {}
        """UIDs of pods that are reserved for a session whose claim has not begun."""
        self._told: dict[str, Told] = {}
        """By UID of the session."""
        self._doubtful: dict[tuple[Key, FirstPod], None] = {}
        """Of Sessions that may have been made though no answer came, and of which nobody was told;
        the oldest first.
        """
        self._listeners: list[Callable[[SessionObject], None]] = []
        sessions.listen(self._changed)

    def __contains__(self, key: Key) -> bool:
        return key in self._made

    def listen(self, listener: Callable[[SessionObject], None]) -> None:
        """Call back with each Session of which callers may be told that it runs."""
        self._listeners.append(listener)

    def make(self, key: Key, first: FirstPod) -> None:
        """A Session is about to be made for a pod, which is reserved."""
        self._made[key] = first
        self._held[key] = first.uid

    def drop(self, key: Key) -> None:
        """It was not made for that pod, or is settled."""
        self._made.pop(key, None)
        held = self._held.pop(key, None)
        if held is not None:
            self._reserved.discard(held)

    def doubt(self, key: Key) -> None:
        """It may have been made for that pod, or not: the pod is anybody's, but if there is such a
        Session, nobody else has told anything of it.
        """
        first = self._made.get(key)
        self.drop(key)
        if first is not None:
            self._doubtful[key, first] = None
            if len(self._doubtful) > _DOUBTFUL:
                del self._doubtful[next(iter(self._doubtful))]

    def made(self, session: SessionObject) -> bool:
        """Whether it was made here for its first pod, so that nobody else can have told anything
        of it.
        """
        key, first = session.key, session.first_pod
        if first is None:
            return False
        return self._made.get(key) == first or (key, first) in self._doubtful

    def take(self, session: SessionObject) -> bool:
        """Whether its pod is held for it: from now on its claim has the pod.

        What is held under its name may be another pod: two processes that get the same call choose
        each its own, and one of them makes the Session.
        """
        first = session.first_pod
        if first is None or self._held.get(session.key) != first.uid:
            return False
        del self._held[session.key]
        return True

    def tell(self, running: SessionObject, pod: PodView) -> None:
        """Let callers know that a Session runs whose status is yet to be written."""
        now = self._sessions.get(*running.key)
        if now is None or now.metadata.uid != running.metadata.uid:
            return
        self._told[running.metadata.uid] = Told(running, pod)
        for listener in self._listeners:
            listener(running)

    def told(self, session: SessionObject) -> Told | None:
        """What callers know of a Session whose status does not say it yet."""
        return self._told.get(session.metadata.uid)

    def shown(self, session: SessionObject) -> SessionObject:
        """The Session as callers are shown it."""
        told = self.told(session)
        if told is None or session.status.phase is not Phase.PENDING:
            return session
        return session.model_copy(update={"status": told.session.status})

    def _changed(self, before: SessionObject | None, after: SessionObject | None) -> None:
        if before and (after is None or after.metadata.uid != before.metadata.uid):
            self._told.pop(before.metadata.uid, None)
            self._settled(before, before)
        if after and after.status.phase is not Phase.PENDING:
            self._told.pop(after.metadata.uid, None)
            self._settled(before or after, after)

    def _settled(self, waited: SessionObject, session: SessionObject) -> None:
        self.drop(session.key)
        if waited.first_pod:
            self._doubtful.pop((session.key, waited.first_pod), None)


def may_be_first(pod: PodView, session: SessionObject) -> bool:
    """Whether a session may yet have the pod that it was made for, by what is known of that: who
    writes annotations is not trusted. Sessions are made for warm pods only. One that is being
    deleted, and is nobody's, nobody was told of, and nobody will be.
    """
    free = session.metadata.uid == pod.session_uid or not (pod.session_uid or pod.deleting)
    free = free and pod.state != names.STATE_STARTING
    return free and is_first(pod, session) and pod.environment == session.spec.environment_name


def is_first(pod: PodView, session: SessionObject) -> bool:
    """Whether a pod is the one that a session was made for, and may still run in."""
    first = session.first_pod
    return first is not None and first.uid == pod.uid
