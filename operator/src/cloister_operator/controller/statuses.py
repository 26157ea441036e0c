"""Writes the status of Sessions, and the Events that go with it."""

from datetime import datetime
from typing import Any, Literal

from .. import names
from ..api import conditions
from ..api.conditions import Finding, timestamp
from ..api.pod import PodView
from ..api.session import Phase, SessionObject, SessionStatus
from ..cluster.resources import SESSIONS
from ..errors import ConflictError, NotFoundError, TransientError
from ..metrics import CLAIMS, FAILURES
from ..plan import meters
from ..plan.meters import Reading
from ..plan.said import Said
from ..plan.session import SessionPlan, losses_after
from .context import Context, address
from .events import Recorder

_NO_POD: dict[str, Any] = {"pod_name": None, "endpoint": None}
"""podUID stays: it tells the pod that is on its way out from the next one."""


class SessionStatuses:
    """What a Session's status says at each turn of its life."""

    def __init__(self, context: Context, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder
        self._said = Said()

    def forget(self, namespace: str, name: str) -> None:
        """The session is gone."""
        self._said.forget((namespace, name))

    async def running(
        self, session: SessionObject, pod: PodView, credentials: str | None, start: datetime
    ) -> None:
        """The pod is the session's since `start`, and answers."""
        status, said = self._as_running(session, pod, credentials, start)
        await self._write(session, status)
        self._record(session, said.reason, said.message)

    def as_running(self, session: SessionObject, pod: PodView, start: datetime) -> SessionObject:
        """What `running` makes of a session whose caller gets the credentials."""
        status, _ = self._as_running(session, pod, None, start)
        return session.model_copy(update={"status": status})

    def _as_running(
        self, session: SessionObject, pod: PodView, credentials: str | None, start: datetime
    ) -> tuple[SessionStatus, Finding]:
        status, metadata = session.status, session.metadata
        again = status.started_at is not None
        reason, message = conditions.CLAIMED, f"pod {pod.name} is the session's"
        if again:
            reason = conditions.RESUMED
            message = (
                f"pod {pod.name} has the session's workspace; its shells and processes start "
                "afresh, and other files are as in a new session"
            )
        ready = Finding(conditions.READY, "True", reason, message)
        findings = [ready]
        known = {each.type for each in status.conditions}
        if conditions.SUSPENDED in known:
            findings.append(Finding(conditions.SUSPENDED, "False", reason, message))
        if conditions.HAS_PLACE in known:
            findings.append(Finding(conditions.HAS_PLACE, "True", reason, message))
        changes = meters.started(status, start) | {
            "phase": Phase.RUNNING,
            "reason": reason,
            "pod_name": pod.name,
            "pod_uid": pod.uid,
            "endpoint": address(pod).endpoint,
            "server_name": names.session_server_name(metadata.uid),
            "credentials_secret_name": credentials,
            "workspace_claim": pod.claim or None,
            "recipe_hash": pod.recipe,
            "restarts": status.restarts + again,
        }
        return self._turned(session, changes, findings), ready

    async def waiting(self, session: SessionObject, plan: SessionPlan) -> datetime | None:
        """It has no pod yet; written only when the reason changed. Where another process has just
        said something else, nothing is written, and the answer is when that may be.
        """
        changes = {
            "phase": Phase.PENDING,
            "reason": plan.reason,
            "queue_position": plan.queue_position,
        }
        said, new = _said_of(session.status), self._turned(session, changes, _not_ready(plan))
        if said == _said_of(new):
            return None
        uid, now = session.metadata.uid, self._context.clock()
        if said and (until := self._said.contradicted_until(session.key, uid, said, now)):
            return until
        await self._write(session, new)
        return None

    async def gave_back(self, session: SessionObject, plan: SessionPlan, pod: PodView) -> None:
        """It waits in line again, and this pod of its is never handed over, by whomever."""
        changes = {
            "phase": Phase.PENDING,
            "reason": plan.reason,
            "queue_position": plan.queue_position,
            "pod_uid": pod.uid,
        }
        await self._turn(session, changes, _not_ready(plan))

    async def declined(self, session: SessionObject, plan: SessionPlan) -> None:
        """It was to be suspended, and cannot be."""
        found = Finding(conditions.SUSPENDED, "False", plan.reason, plan.message)
        await self._turn(session, {}, [found])
        self._record(session, plan.reason, plan.message, "Warning")

    async def suspended(
        self, session: SessionObject, plan: SessionPlan, reading: Reading | None, left_uid: str
    ) -> None:
        """It has no pod any more, and may get one again; but not that of this UID, in which it may
        not have run yet.
        """
        now = self._context.clock()
        changes = meters.stopped(session.status, now, reading) | {
            **_NO_POD,
            "phase": Phase.SUSPENDED,
            "reason": plan.reason,
            "pod_uid": left_uid or session.status.pod_uid,
            "suspended_at": timestamp(now),
            "recoveries": 0,
        }
        findings = [
            Finding(conditions.READY, "False", plan.reason, plan.message),
            Finding(conditions.SUSPENDED, "True", plan.reason, plan.message),
        ]
        await self._turn(session, changes, findings)
        self._record(session, plan.reason, plan.message)

    async def resuming(self, session: SessionObject) -> None:
        """It is to get a pod again."""
        message = "it gets a new pod"
        findings = [
            Finding(conditions.READY, "False", conditions.RESUMING, message),
            Finding(conditions.SUSPENDED, "False", conditions.RESUMING, message),
        ]
        changes = {"phase": Phase.PENDING, "reason": conditions.RESUMING}
        await self._turn(session, changes, findings)

    async def recovering(self, session: SessionObject, plan: SessionPlan, lost_uid: str) -> None:
        """Its pod is lost, and it gets another one."""
        now, status = self._context.clock(), session.status
        message = f"{plan.message}; it gets a new pod on its workspace"
        changes = meters.stopped(status, now, None) | {
            **_NO_POD,
            "phase": Phase.PENDING,
            "reason": plan.reason,
            "pod_uid": lost_uid or status.pod_uid,
            "failed_at": timestamp(now),
            "recoveries": losses_after(session, now),
        }
        await self._turn(
            session, changes, [Finding(conditions.READY, "False", plan.reason, message)]
        )
        FAILURES.labels("recovery", plan.reason).inc()
        self._record(session, plan.reason, message, "Warning")

    async def ended(
        self, session: SessionObject, plan: SessionPlan, reading: Reading | None = None
    ) -> None:
        """It has ended; `reading` is what its pod said last."""
        now = self._context.clock()
        changes = meters.stopped(session.status, now, reading) | {
            "phase": plan.phase,
            "reason": plan.reason,
            "ended_at": timestamp(now),
        }
        ready = Finding(conditions.READY, "False", plan.reason, plan.message)
        await self._turn(session, changes, [ready])
        if plan.phase is Phase.FAILED:
            FAILURES.labels("session", plan.reason).inc()
            if session.status.phase is Phase.PENDING:
                CLAIMS.labels(
                    *self._context.series(*session.environment_key), "none", "failed"
                ).inc()
        normal = plan.phase is Phase.TERMINATED
        self._record(session, plan.reason, plan.message, "Normal" if normal else "Warning")

    async def read(self, session: SessionObject, reading: Reading) -> None:
        """What its pod says of its work."""
        new = session.status.model_copy(update=meters.read(session.status, reading))
        await self._write(session, new)

    def _record(
        self,
        session: SessionObject,
        reason: str,
        message: str,
        kind: Literal["Normal", "Warning"] = "Normal",
    ) -> None:
        self._recorder.record(names.SESSION_KIND, session.metadata, reason, message, kind)

    async def _turn(
        self, session: SessionObject, changes: dict[str, Any], findings: list[Finding]
    ) -> None:
        await self._write(session, self._turned(session, changes, findings))

    def _turned(
        self, session: SessionObject, changes: dict[str, Any], findings: list[Finding]
    ) -> SessionStatus:
        generation = session.metadata.generation
        updated = conditions.update(
            session.status.conditions, findings, generation, self._context.clock()
        )
        said = {"observed_generation": generation, "conditions": updated}
        return session.status.model_copy(update={"queue_position": None} | changes | said)

    async def _write(self, session: SessionObject, new: SessionStatus) -> None:
        """Write a status, but only on the Session as it was planned for: another operator may have
        given it a pod, or ended it.
        """
        body = new.model_dump(mode="json", by_alias=True, exclude_none=True)
        before = session.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        # What is not there any more has to be said: the patch is merged.
        body |= dict.fromkeys(before.keys() - body.keys())
        namespace, name = session.key
        version = session.metadata.resource_version
        try:
            answer = await self._context.api.patch_status(SESSIONS, namespace, name, body, version)
        except ConflictError:
            # Read the newest state, so that the next attempt does not plan on the old one.
            self._context.sessions.put(await self._context.api.get(SESSIONS, namespace, name))
            raise
        except NotFoundError:
            # While its watch is silent, whatever happens to its pod would have it tried again.
            gone = {"namespace": namespace, "name": name, "uid": session.metadata.uid}
            self._context.sessions.remove({"metadata": gone})
            raise
        except TransientError:
            # It may have been written, and is nobody else's word then.
            self._said.forget(session.key)
            raise
        self._context.sessions.put(answer)
        said = _said_of(new)
        if said and new.phase is Phase.PENDING:
            self._said.note(session.key, session.metadata.uid, said, self._context.clock())
        else:
            self._said.forget(session.key)


def _not_ready(plan: SessionPlan) -> list[Finding]:
    """The conditions of a session that waits."""
    found = [Finding(conditions.READY, "False", plan.reason, plan.message)]
    if plan.reason in conditions.NO_PLACE:
        found.append(Finding(conditions.HAS_PLACE, "False", plan.reason, plan.message))
    return found


def _said_of(status: SessionStatus) -> tuple[str, str] | None:
    """Reason and message for which a session is Ready, or is not."""
    return next(
        ((x.reason, x.message) for x in status.conditions if x.type == conditions.READY), None
    )
