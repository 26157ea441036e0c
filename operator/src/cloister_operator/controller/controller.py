"""Puts mirrors, queue and reconcilers together."""

import asyncio
import logging
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from .. import names
from ..api.common import JSON
from ..api.environment import EnvironmentObject
from ..api.pod import PodView
from ..api.session import SessionObject
from ..cache import Key, Store
from ..cluster.reflector import Reflector
from ..cluster.resources import ENVIRONMENTS, PODS, SESSIONS
from ..errors import OperatorError
from ..logs import about
from ..metrics import reconcile
from ..plan.lanes import Lane
from ..tasks import keep, together
from ..workqueue import WorkQueue
from .context import Context, WorkKey
from .environments import EnvironmentReconciler
from .events import Recorder
from .places import Places
from .prover import Prover
from .sessions import SessionReconciler
from .warmer import Warmer

log = logging.getLogger(__name__)

RESYNC = timedelta(seconds=60)
"""Custom resources are listed again this often: kopf does not tell of those that were deleted
while its watch was down."""
REFILL_AFTER_SECONDS = 0.1


class Controller:
    """The operator without its outer shells."""

    def __init__(self, context: Context, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder
        self._warmer = Warmer(context)
        self._prover = Prover(context)
        self._environments = EnvironmentReconciler(context, self._warmer, recorder)
        self._sessions = SessionReconciler(context, self._warmer, recorder)
        self._works = False
        context.queue = self._new_queue()
        context.environments.listen(self._environment_changed)
        context.sessions.listen(self._session_changed)
        context.pods.listen(self._pod_changed)
        context.places.listen(self._place_left)
        if context.namespace_places:
            context.namespace_places.listen(self._namespace_place_left)
        context.ranges.listen(self._ranges_changed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Mirror and work until cancelled, as the only operator there is."""
        async with asyncio.TaskGroup() as group:
            keep(group, "mirror", self.mirror)
            await self._context.synced.wait()
            keep(group, "work", self.work)

    async def mirror(self) -> None:
        """Keep the mirrors until cancelled; nothing is decided."""
        context = self._context
        reflectors = [
            Reflector(
                context.api,
                PODS,
                namespace,
                f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}",
                context.witness,
            )
            for namespace in context.settings.sandbox_namespaces
        ]
        if context.settings.egress_gateway:
            component = f"{names.COMPONENT_LABEL}={names.EGRESS_COMPONENT}"
            where, sink = context.settings.namespace, context.egress.mirror
            reflectors.append(Reflector(context.api, PODS, where, component, sink))
        async with asyncio.TaskGroup() as group:
            keep(group, "the cluster's addresses", context.ranges.run)
            for reflector in reflectors:
                keep(group, "pods", reflector.run)
            for reflector in reflectors:
                await reflector.synced.wait()
            await self.relist()
            context.synced.set()
            keep(group, "resync", self._resync)

    async def work(self) -> None:
        """Decide, and carry out what was decided, until cancelled; not to be called again.

        What this process found out and began holds for as long as nobody else decides: who leads
        once more begins with a new Controller.
        """
        self._works = True
        self._add_all()
        try:
            await together(
                {
                    "Events": self._recorder.run,
                    "the queue": self._context.queue.run,
                    "proofs": self._prover.run,
                }
            )
        finally:
            self._works = False
            await self._warmer.close()
            await self._context.repositories.close()

    async def finish(self, seconds: float) -> None:
        """Begin nothing new, and wait for what has begun, but not for longer than `seconds`."""
        await self._context.queue.finish(seconds)

    async def relist(self) -> None:
        """List the custom resources, however long it takes."""
        pause = 0.1
        while True:
            try:
                return await self._list()
            except OperatorError as error:
                log.warning("custom resources cannot be listed yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(5.0, pause * 2)

    def observe(self, resource: str, kind: str | None, obj: JSON) -> None:
        """An event of a custom resource, as kopf tells it."""
        mirror: Store[EnvironmentObject] | Store[SessionObject] = self._context.sessions
        if resource == names.ENVIRONMENTS:
            mirror = self._context.environments
        try:
            if kind == "DELETED":
                mirror.remove(obj)
            else:
                mirror.put(obj)
        except ValueError as error:
            name = obj["metadata"].get("name")
            log.error("%s %s cannot be read: %s", resource, name, error)  # noqa: TRY400

    async def _list(self) -> None:
        context = self._context
        environments, version = await context.api.list(ENVIRONMENTS)
        context.environments.replace(environments, int(version))
        sessions, version = await context.api.list(SESSIONS)
        context.sessions.replace(sessions, int(version))

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC.total_seconds())
            try:
                await self._list()
            except OperatorError as error:
                log.warning("resync: %s", error)
                continue
            self._context.forget_strangers()
            self._sessions.forget_strangers()
            if not self._works:
                # Nobody takes from it: what has gathered is known anyway.
                self._context.queue = self._new_queue()
                continue
            self._environments.look_anew()
            self._add_all()

    def _new_queue(self) -> WorkQueue[WorkKey]:
        return WorkQueue(self._handle, lane=self._lane)

    def _add_all(self) -> None:
        self._context.enqueue_environments()
        for key in list(self._context.sessions):
            self._context.queue.add(("session", *key))

    async def _handle(self, key: WorkKey) -> float | None:
        kind, namespace, name = key
        reconciler = self._environments if kind == "environment" else self._sessions
        with about(namespace=namespace, **{kind: name}), reconcile(kind):
            return await reconciler.reconcile(namespace, name)

    def _environment_changed(
        self, before: EnvironmentObject | None, after: EnvironmentObject | None
    ) -> None:
        environment = after or before
        if environment is None:
            return
        # Our own status write changes nothing that a reconcile decides on.
        spec_changed = (
            before is None
            or after is None
            or before.metadata.generation != after.metadata.generation
            or before.metadata.uid != after.metadata.uid
        )
        labels_changed = before and after and before.metadata.labels != after.metadata.labels
        if spec_changed or labels_changed or (after and after.metadata.deletion_timestamp):
            self._context.queue.add(("environment", *environment.key))

    def _session_changed(self, before: SessionObject | None, after: SessionObject | None) -> None:
        session = after or before
        if session is None:
            return
        self._context.queue.add(("session", *session.key))
        if after and after.status.pod_uid:
            # It runs in that pod, or never will: whichever operator wrote that.
            self._warmer.over(after.status.pod_uid, after.metadata.uid)
        if self._works and (after is None or after.metadata.deletion_timestamp):
            # What another key's reconcile is about is not what this is about.
            with about(
                namespace=session.metadata.namespace,
                session=session.metadata.name,
                environment=session.spec.environment_name,
            ):
                self._start(self._sessions.ended(session))

    def _place_left(self, key: Key) -> None:
        """Those that wait for a place look again: as many as there are places for."""
        environment = self._context.environments.get(*key)
        most = environment.spec.pool.max_sessions if environment else None
        if most is not None:
            self._look_at_front(self._context.places, key, most)

    def _namespace_place_left(self, key: Key) -> None:
        context = self._context
        if context.namespace_places:
            most = context.settings.max_sessions_per_namespace
            self._look_at_front(context.namespace_places, key, most)

    def _look_at_front(self, places: Places, key: Key, most: int) -> None:
        for name in places.front(key, most):
            self._context.queue.add(("session", key[0], name))

    def _ranges_changed(self) -> None:
        """Policies name the cluster's addresses: every namespace's are written again."""
        if self._works:
            self._context.enqueue_environments()

    def _lane(self, key: WorkKey) -> Lane:
        """Sessions stand in the lane of their Environment, so that no flood of them keeps those of
        another one waiting.
        """
        kind, namespace, name = key
        session = self._context.sessions.get(namespace, name) if kind == "session" else None
        return namespace, session.spec.environment_name if session else name

    def _pod_changed(self, before: PodView | None, after: PodView | None) -> None:
        pod = after or before
        if pod is None:
            return
        free = before and before.state != names.STATE_CLAIMED and not before.deleting
        if free and (after is None or after.deleting) and pod.uid not in self._context.reserved:
            self._context.doubted.add((pod.namespace, pod.environment))
        if after is None or (before and after.uid != before.uid):
            gone = before or pod
            self._warmer.forget(gone.uid)
            self._context.forget_pod(gone.uid)
        elif not after.alive:
            self._warmer.forget(after.uid)
        elif after.state == names.STATE_CLAIMED:
            self._warmer.over(after.uid)
        claimed = before and after and before.state == names.STATE_WARM != after.state
        if claimed and pod.session_name:
            # The refill waits until the claim is through: both would share one event loop.
            self._context.queue.add(("session", pod.namespace, pod.session_name))
            self._context.queue.add_after(
                ("environment", pod.namespace, pod.environment), REFILL_AFTER_SECONDS
            )
            return
        self._context.enqueue_pod_owners(pod)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except OperatorError as error:
                log.info("left to owner references: %s", error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
