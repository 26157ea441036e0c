"""How a session leaves its pod: suspended, ended, or because the pod is lost."""

import logging
from datetime import timedelta
from typing import Literal

from .. import names
from ..api import conditions
from ..api.environment import EnvironmentObject
from ..api.pod import PodView
from ..api.session import Phase, SessionObject
from ..cluster.resources import SESSIONS
from ..errors import NotFoundError, OperatorError
from ..logs import about
from ..plan.meters import Reading
from ..plan.session import SessionPlan, Step, limits, suspends_when_idle
from . import pods
from .context import Context, address
from .statuses import SessionStatuses

log = logging.getLogger(__name__)

DRAIN = timedelta(seconds=10)
"""How long calls under way may take to finish before a session is suspended."""


class Endings:
    """Each writes the status first: a kill in between leaves a pod that the next look deletes."""

    def __init__(self, context: Context, statuses: SessionStatuses) -> None:
        self._context = context
        self._statuses = statuses

    async def ask_activity(
        self, session: SessionObject, environment: EnvironmentObject | None, pod: PodView
    ) -> None:
        """The idle deadline is due by what the status says: the exec server knows better."""
        reading = await self._read(session, pod)
        idle = limits(session, environment)[0]
        if reading.running_calls or reading.idle_for < idle:
            await self._statuses.read(session, reading)
        elif suspends_when_idle(session, environment):
            # The spec is what decides: kubectl shows it, and a person resumes by changing it.
            await self._set_state(session, "Suspended")
        else:
            message = _idle(idle)
            plan = SessionPlan(Step.END, Phase.TERMINATED, conditions.IDLE_TIMEOUT, message)
            await self.end(session, pod, plan, reading)

    async def suspend(
        self,
        session: SessionObject,
        environment: EnvironmentObject | None,
        pod: PodView | None,
        plan: SessionPlan,
    ) -> None:
        """Let calls finish and results leave; its workspace stays, its pod goes."""
        reading = None
        if pod and pod.alive and session.status.phase is Phase.RUNNING:
            reading = await self._last_reading(session, pod)
            if session.suspended_when_idle:
                idle = limits(session, environment)[0]
                if reading and (reading.running_calls or reading.idle_for < idle):
                    # Somebody has come back since, as when an operator died in between.
                    await self._set_state(session, "Running")
                    return
                message = f"{_idle(idle)}; its workspace is kept. Resume it to go on"
                reason = conditions.IDLE_TIMEOUT
                plan = SessionPlan(Step.SUSPEND, Phase.SUSPENDED, reason, message)
            drained = await self._drain(session, pod)
            if drained and reading and reading.running_calls:
                reading = await self._last_reading(session, pod) or reading
        await self._statuses.suspended(session, plan, reading, pod.uid if pod else "")
        await self._drop(pod)

    async def recover(self, session: SessionObject, pod: PodView | None, plan: SessionPlan) -> None:
        """Its pod is lost, its workspace is not."""
        await self._statuses.recovering(session, plan, pod.uid if pod else "")
        await self._drop(pod)

    async def end(
        self,
        session: SessionObject,
        pod: PodView | None,
        plan: SessionPlan,
        reading: Reading | None = None,
    ) -> None:
        """It never runs again."""
        if reading is None and pod and pod.alive and session.status.phase is Phase.RUNNING:
            reading = await self._last_reading(session, pod)
        await self._statuses.ended(session, plan, reading)
        await self._drop(pod)

    async def delete(self, session: SessionObject) -> None:
        """It ended long ago."""
        namespace, name = session.key
        try:
            await self._context.api.delete(SESSIONS, namespace, name, uid=session.metadata.uid)
        except NotFoundError:
            log.debug("session %s is gone", name)

    async def _drop(self, pod: PodView | None) -> None:
        if pod and not pod.deleting:
            await pods.delete(self._context, pod)

    async def _set_state(
        self, session: SessionObject, state: Literal["Running", "Suspended"]
    ) -> None:
        """Only on the Session as it was looked at: somebody may just have changed it."""
        metadata = session.metadata
        # The change of the state makes the next generation.
        marks = metadata.annotations | {names.IDLE: str(metadata.generation + 1)}
        answer = await self._context.api.json_patch(
            SESSIONS,
            metadata.namespace,
            metadata.name,
            [
                {
                    "op": "test",
                    "path": "/metadata/resourceVersion",
                    "value": metadata.resource_version,
                },
                {"op": "add", "path": "/metadata/annotations", "value": marks},
                {"op": "add", "path": "/spec/state", "value": state},
            ],
        )
        self._context.sessions.put(answer)

    async def _read(self, session: SessionObject, pod: PodView) -> Reading:
        context = self._context
        found = await context.dialer.activity(address(pod), session.metadata.uid)
        return Reading(context.clock(), found.idle_for, found.active, found.running_calls)

    async def _last_reading(self, session: SessionObject, pod: PodView) -> Reading | None:
        """For the figures: a pod that does not answer holds nothing up."""
        try:
            return await self._read(session, pod)
        except OperatorError as error:
            with about(pod=pod.name):
                log.info("pod %s does not say what it did: %s", pod.name, error)
            return None

    async def _drain(self, session: SessionObject, pod: PodView) -> bool:
        try:
            await self._context.dialer.drain(address(pod), session.metadata.uid, DRAIN)
        except OperatorError as error:
            with about(pod=pod.name):
                log.info("pod %s is not drained: %s", pod.name, error)
            return False
        return True


def _idle(limit: timedelta) -> str:
    return f"no tool ran for {int(limit.total_seconds())} s"
