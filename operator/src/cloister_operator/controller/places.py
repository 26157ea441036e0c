"""Places of an Environment with `maxSessions`, or of a namespace with a limit of the platform's:
who has one, and who waits for one.

Kept up to date by each change of a Session or a pod, so that a look at it costs the same however
many wait.
"""

import contextlib
from collections.abc import Callable, Iterator

from .. import names
from ..api.pod import PodView
from ..api.session import Phase, SessionObject
from ..cache import Key, Store
from ..plan.line import SHOWN, Entry, Line


def of_environment(namespace: str, environment: str) -> Key:
    """Places are an Environment's own."""
    return namespace, environment


def of_namespace(namespace: str, _environment: str) -> Key:
    """All Environments of a namespace share its places."""
    return namespace, ""


class Places:
    """What the sessions of every Environment, or namespace, have and wait for, as far as this
    process knows.
    """

    def __init__(
        self,
        pods: Store[PodView],
        sessions: Store[SessionObject],
        whose: Callable[[str, str], Key] = of_environment,
    ) -> None:
        """`whose`: the key of what gives out the places, by namespace and Environment."""
        self._whose = whose
        self._pods = pods
        self._sessions: dict[str, SessionObject] = {}
        self._lines: dict[Key, Line] = {}
        self._taken: dict[Key, set[str]] = {}
        """UIDs of sessions that have a place."""
        self._admitted: dict[Key, set[str]] = {}
        """UIDs of those for which this process is just getting a pod."""
        self._listeners: list[Callable[[Key], None]] = []
        sessions.listen(self._session_changed)
        pods.listen(self._pod_changed)

    def listen(self, listener: Callable[[Key], None]) -> None:
        """Call back with the key when somebody left a line, or a place."""
        self._listeners.append(listener)

    def taken(self, key: Key) -> int:
        """Sessions that have a place."""
        return len(self._taken.get(key, ()))

    def before(self, session: SessionObject) -> int:
        """Sessions that count before this one: they have a place, or have waited for longer."""
        key, uid = self._key(session), session.metadata.uid
        having = self._taken.get(key, set()) | self._admitted.get(key, set())
        return len(having - {uid}) + self.ahead(session)

    def ahead(self, session: SessionObject) -> int:
        """Sessions that wait for a place as well, and have waited for longer."""
        key, uid, mine = self._key(session), session.metadata.uid, _entry(session)
        taken = self._taken.get(key, set())
        if uid in taken:
            return 0
        # Those that are admitted have a place already, though they are still in line.
        admitted = self._admitted.get(key, set()) - taken - {uid}
        known = (self._sessions.get(each) for each in admitted)
        again = sum(1 for other in known if other and _entry(other) < mine)
        return self._lines.get(key, Line()).ahead_of(mine) - again

    def front(self, key: Key, most: int) -> list[str]:
        """Names of sessions at the front of the line: those for which there is a place, and those
        that are told each step.
        """
        free = max(0, most - self.taken(key))
        return [name for _, name, _ in self._lines.get(key, Line()).first(free + SHOWN)]

    @contextlib.contextmanager
    def admitting(self, session: SessionObject) -> Iterator[None]:
        """While it gets a pod it has its place, whoever comes meanwhile."""
        key, uid = self._key(session), session.metadata.uid
        self._admitted.setdefault(key, set()).add(uid)
        try:
            yield
        finally:
            self._admitted[key].discard(uid)
            if not self._admitted[key]:
                del self._admitted[key]

    def _session_changed(self, before: SessionObject | None, after: SessionObject | None) -> None:
        for session in (before, after):
            if session:
                self._sessions[session.metadata.uid] = session
        if before and (after is None or after.metadata.uid != before.metadata.uid):
            del self._sessions[before.metadata.uid]
            self._look(self._key(before), before.metadata.uid, _entry(before))
        if after:
            self._look(self._key(after), after.metadata.uid, _entry(after))

    def _pod_changed(self, before: PodView | None, after: PodView | None) -> None:
        for pod in (before, after):
            if pod and pod.session_uid:
                session = self._sessions.get(pod.session_uid)
                key = self._whose(pod.namespace, pod.environment)
                if session:
                    key = self._key(session)
                self._look(key, pod.session_uid, _entry(session) if session else None)

    def _key(self, session: SessionObject) -> Key:
        return self._whose(*session.environment_key)

    def _look(self, key: Key, uid: str, entry: Entry | None) -> None:
        """Put a session where it belongs now."""
        session = self._sessions.get(uid)
        has_place = self._has_place(key, uid, session)
        waits = session is not None and not has_place and _wants(session)
        taken, line = self._taken.setdefault(key, set()), self._lines.setdefault(key, Line())
        left = uid in taken and not has_place
        (taken.add if has_place else taken.discard)(uid)
        if entry and waits:
            line.add(entry)
        elif entry:
            left |= line.remove(entry)
        if not taken:
            del self._taken[key]
        if not len(line):
            del self._lines[key]
        if left:
            for listener in self._listeners:
                listener(key)

    def _has_place(self, key: Key, uid: str, session: SessionObject | None) -> bool:
        pods = self._pods.group(("session", key[0], uid))
        if session is None:
            # Its pod may be known before it is; one that is gone takes its pods along.
            return any(pod.alive and pod.state == names.STATE_CLAIMED for pod in pods)
        phase = session.status.phase
        if phase.ended or session.metadata.deletion_timestamp:
            return False
        if phase is Phase.SUSPENDED:
            # Another operator may have resumed it.
            return any(pod.alive and pod.uid != session.status.pod_uid for pod in pods)
        return phase is Phase.RUNNING or bool(pods)


def _wants(session: SessionObject) -> bool:
    """Whether it is to get a pod."""
    status = session.status
    return (
        status.phase is Phase.PENDING
        and session.spec.state == "Running"
        and session.metadata.deletion_timestamp is None
    )


def _entry(session: SessionObject) -> Entry:
    metadata = session.metadata
    return metadata.creation_timestamp or "", metadata.name, metadata.uid
