"""Writes the status of Sessions, and the Events that go with it."""

from datetime import datetime

from .. import names
from ..api import conditions
from ..api.conditions import Finding, parse_time, timestamp
from ..api.pod import PodView
from ..api.session import Phase, SessionObject
from ..cluster.resources import SESSIONS
from ..errors import ConflictError
from ..plan.session import SessionPlan
from .context import Context, address
from .events import Recorder


class SessionStatuses:
    """What a Session's status says at each turn of its life."""

    def __init__(self, context: Context, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder

    async def running(
        self, session: SessionObject, pod: PodView, credentials: str | None, now: datetime
    ) -> None:
        """The pod is the session's and answers."""
        metadata = session.metadata
        message = f"pod {pod.name} is the session's"
        ready = Finding(conditions.READY, "True", conditions.CLAIMED, message)
        changes = {
            "phase": Phase.RUNNING,
            "reason": conditions.CLAIMED,
            "observed_generation": metadata.generation,
            "conditions": conditions.update(
                session.status.conditions, [ready], metadata.generation, now
            ),
            "pod_name": pod.name,
            "pod_uid": pod.uid,
            "endpoint": address(pod).endpoint,
            "server_name": names.session_server_name(metadata.uid),
            "credentials_secret_name": credentials,
            "recipe_hash": pod.recipe,
            "started_at": timestamp(now),
            "last_activity_time": timestamp(now),
        }
        await self.patch(session, changes)
        self._recorder.record(names.SESSION_KIND, metadata, conditions.CLAIMED, message)

    async def waiting(self, session: SessionObject, plan: SessionPlan) -> None:
        """It has no pod yet; written only when the reason changed."""
        metadata = session.metadata
        found = Finding(conditions.READY, "False", plan.reason, plan.message)
        before = next((x for x in session.status.conditions if x.type == found.type), None)
        if before and (before.reason, before.message) == (found.reason, found.message):
            return
        updated = conditions.update(
            session.status.conditions, [found], metadata.generation, self._context.clock()
        )
        await self.patch(
            session,
            {
                "phase": Phase.PENDING,
                "reason": plan.reason,
                "observed_generation": metadata.generation,
                "conditions": updated,
            },
        )

    async def ended(
        self,
        session: SessionObject,
        plan: SessionPlan,
        meters: dict[str, object] | None = None,
    ) -> None:
        """It has ended; `meters` are what its pod said last."""
        now, status, metadata = self._context.clock(), session.status, session.metadata
        ready = Finding(conditions.READY, "False", plan.reason, plan.message)
        running = status.running_seconds
        if status.started_at:
            running = max(running, int((now - parse_time(status.started_at)).total_seconds()))
        changes = {
            "running_seconds": running,
            **(meters or {}),
            "phase": plan.phase,
            "reason": plan.reason,
            "observed_generation": metadata.generation,
            "ended_at": timestamp(now),
            "conditions": conditions.update(status.conditions, [ready], metadata.generation, now),
        }
        await self.patch(session, changes)
        normal = plan.phase is Phase.TERMINATED
        self._recorder.record(
            names.SESSION_KIND,
            metadata,
            plan.reason,
            plan.message,
            "Normal" if normal else "Warning",
        )

    async def patch(self, session: SessionObject, changes: dict[str, object]) -> None:
        """Write a status, but only on the Session as it was planned for: another operator may have
        given it a pod, or ended it.
        """
        body = session.status.model_copy(update=changes).model_dump(
            mode="json", by_alias=True, exclude_none=True
        )
        namespace, name = session.key
        version = session.metadata.resource_version
        try:
            answer = await self._context.api.patch_status(SESSIONS, namespace, name, body, version)
        except ConflictError:
            # Read the newest state, so that the next attempt does not plan on the old one.
            self._context.sessions.put(await self._context.api.get(SESSIONS, namespace, name))
            raise
        self._context.sessions.put(answer)
