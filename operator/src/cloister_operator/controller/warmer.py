"""Follows each new pod until it is usable: it answers, it is set up, its network is closed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cloister_api.cancelling import being_cancelled

from .. import names
from ..api import conditions
from ..api.pod import PodView
from ..cluster.resources import PODS
from ..errors import ConflictError, NotFoundError, PermanentError, TransientError
from ..logs import about
from ..plan import proving
from ..plan.egress import gateway_ways
from ..plan.failure import Failure, Proof
from ..sandboxes import PodAddress, SandboxInfo, SandboxState
from . import pods
from .context import Context, address

log = logging.getLogger(__name__)

DIAL_SECONDS = 30.0
STARTUP_LIMIT = timedelta(minutes=15)
"""From a pod's creation to its being usable: the setup script may take ten minutes. Of one that a
session has, from when this operator began to follow it, if that was later: it may have been warm
for days, and be silent for a moment just then."""
ENFORCEMENT_GRACE_SECONDS = 10.0
"""Policy engines need a moment for a new pod."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_ANOTHER_LOOK = 1.0
"""Seconds: that a pod is gone, or another's, the watch tells within moments, and that ends it. A
watch that is silent would have it tried again meanwhile, as fast as can be.
"""
_PROVEN_AGAIN_AT_ONCE = 8
"""Pods of an earlier operator that are probed before the first of them has proven the network."""


@dataclass(frozen=True)
class _Following:
    """A pod that is followed."""

    session_uid: str
    """For which session; empty for the pool."""
    began: datetime
    task: asyncio.Task[None]


class Warmer:
    """One task per pod that is not usable yet."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks: dict[str, _Following] = {}
        """By pod UID."""
        self._again = asyncio.Semaphore(_PROVEN_AGAIN_AT_ONCE)

    def ensure(self, pod: PodView, session_uid: str = "") -> None:
        """Follow the pod, unless it is followed already or its result is known.

        Called at each change of the pod: one without an address only gets its identity. With
        `session_uid` a pod that this session has claimed already is usable as well.
        """
        context = self._context
        known = pod.uid in context.usable or pod.uid in context.failures
        if known or self._follows(pod.uid, session_uid) or not pod.alive:
            return
        present = context.pods.get(*pod.key)
        if present is None or present.uid != pod.uid:
            # Who saw it has waited for an answer since, and nobody would end this.
            return
        if not pod.ip and pod.uid in context.identified:
            return
        # Who followed a pool's pod does not know the name it has once a session has claimed it.
        self.forget(pod.uid)
        task = asyncio.create_task(self._follow(pod, session_uid))
        self._tasks[pod.uid] = _Following(session_uid, context.clock(), task)
        task.add_done_callback(lambda done: self._ended(pod.uid, done))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        if uid in self._tasks and self._tasks[uid].task is task:
            del self._tasks[uid]

    def _follows(self, uid: str, session_uid: str) -> bool:
        return uid in self._tasks and self._tasks[uid].session_uid == session_uid

    def over(self, uid: str, session_uid: str = "") -> None:
        """Who follows the pod for this session, or without one for the pool, stops: what becomes of
        the pod is decided.
        """
        if self._follows(uid, session_uid):
            self.forget(uid)

    def forget(self, uid: str) -> None:
        """The pod is gone, or on its way out."""
        followed = self._tasks.pop(uid, None)
        if followed:
            followed.task.cancel()

    async def close(self) -> None:
        """Stop following."""
        tasks = [each.task for each in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, pod: PodView, session_uid: str) -> None:
        with about(
            namespace=pod.namespace,
            environment=pod.environment,
            session=pod.session_name,
            pod=pod.name,
        ):
            await self._bring(pod, session_uid)
        # The task ends after this: what the queue does next sees it gone.
        asyncio.get_running_loop().call_soon(self._context.enqueue_pod_owners, pod)

    async def _bring(self, pod: PodView, session_uid: str) -> None:
        context = self._context
        try:
            if pod.ip:
                if pod.state == names.STATE_WARM and not session_uid:
                    await self._until_proven_again(pod)
                else:
                    await self._until_usable(pod, session_uid)
                await self._until_granted(pod)
                context.usable.add(pod.uid)
                context.failures.pop(pod.uid, None)
            else:
                await self._repeat(pod, lambda: pods.ensure_identity(context, pod))
        except PermanentError as error:
            context.failed(pod.uid, Failure(error.reason, error.sentence))
        except (NotFoundError, ConflictError) as error:
            log.info("pod %s is not ours to warm any more: %s", pod.name, error)
            await asyncio.sleep(_ANOTHER_LOOK)
        except (Exception, asyncio.CancelledError):
            if being_cancelled():
                raise
            log.exception("pod %s cannot be followed; the next reconcile goes on", pod.name)
            await asyncio.sleep(_ANOTHER_LOOK)

    async def _until_proven_again(self, pod: PodView) -> None:
        """A pod that another operator has proven, and labelled: one of its namespace is enough to
        know that the network is still closed. Thousands of handshakes would keep the first claims
        after a restart waiting.
        """
        async with self._again:
            proof = self._context.proofs.get((pod.namespace, pod.network))
            if proof is None or not proof.enforced:
                await self._until_usable(pod, "")

    async def _until_usable(self, pod: PodView, session_uid: str) -> None:
        where, delivered, pause = address(pod), set[str](), _FIRST_PAUSE
        prepared = False
        while True:
            try:
                deadline = asyncio.get_running_loop().time() + DIAL_SECONDS
                info = await self._context.dialer.wait_warm(where, deadline, session_uid)
                if info.awaits:
                    await self._deliver(pod, where, info, delivered)
                    continue
                if info.awaits_proof:
                    if prepared:
                        raise TransientError("it does not begin its setup")
                    _check_users(pod, info)
                    # A setup script is a tenant's: it runs where its pod's calls would.
                    await self._until_open(pod, where)
                    await self._context.dialer.prepare(where)
                    prepared = True
                    continue
                if info.state is SandboxState.WARM:
                    _check_users(pod, info)
                    _check_trees(pod, info)
                    await self._until_open(pod, where)
                break
            except TransientError as error:
                self._check_time(pod, str(error))
                # The pod may answer, and its files be what is missing.
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
        if pod.state == names.STATE_STARTING:
            await self._repeat(pod, lambda: self._label(pod))

    def _check_time(self, pod: PodView, problem: str) -> None:
        """Raise PermanentError for a pod that had its time."""
        followed = self._tasks.get(pod.uid)
        since = (
            max(pod.created, followed.began) if followed and followed.session_uid else pod.created
        )
        if self._context.clock() > since + STARTUP_LIMIT:
            message = f"pod {pod.name} does not get ready: {problem}"
            raise PermanentError(conditions.POD_FAILED, message)

    async def _until_open(self, pod: PodView, where: PodAddress) -> None:
        """Return once the pod's network is proven closed, and open where it is to be."""
        await self._prove(pod, where)
        await self._until_granted(pod)
        await self._until_through(pod, where)

    async def _until_granted(self, pod: PodView) -> None:
        """Return once all egress gateways know the pod, if it needs them."""
        context = self._context
        await context.egress.until_granted(pod, lambda: context.enqueue_pod_owners(pod))

    async def _until_through(self, pod: PodView, where: PodAddress) -> None:
        """Return once the pod reaches the egress gateways, if it needs them: policy engines open a
        new pod's way only after a moment, and a session's first request must pass.
        """
        context, pause = self._context, _FIRST_PAUSE
        ways = gateway_ways(context.gateway, by_name=context.settings.egress_by_name)
        while pod.network == names.NETWORK_GATEWAY and ways:
            try:
                reached = await context.dialer.probe(where, ways)
                closed = [each for each in ways if each not in reached]
                if not closed:
                    return
                problem = f"it does not reach the egress gateways at {' and '.join(closed)}"
            except TransientError as error:
                problem = str(error)
            self._check_time(pod, problem)
            log.info("pod %s: again in %.2f s: %s", pod.name, pause, problem)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    async def _deliver(
        self, pod: PodView, where: PodAddress, info: SandboxInfo, delivered: set[str]
    ) -> None:
        """Give the pod the files of the repositories that it waits for.

        Raises PermanentError for a pod that is of no use, TransientError.
        """
        context = self._context
        for path in info.awaits:
            environment = context.environments.get(pod.namespace, pod.environment)
            archive = await context.repositories.archive(pod, path, environment)
            if archive is None or path in delivered:
                raise PermanentError(
                    conditions.POD_FAILED,
                    f"pod {pod.name} waits for files at {path} that its Environment does not name",
                )
            await context.dialer.deliver(where, path, archive)
            delivered.add(path)

    async def _prove(self, pod: PodView, where: PodAddress) -> None:
        """Return once the pod has tried to reach the cluster and could not; raises TransientError
        when it does not answer.
        """
        context = self._context
        loop = asyncio.get_running_loop()
        began, pause = loop.time(), _FIRST_PAUSE
        while True:
            brief = self._proven(pod)
            try:
                reached = await context.dialer.probe(where, context.targets(pod, brief=brief))
            except TransientError as error:
                if loop.time() - began > DIAL_SECONDS:
                    # It may have been claimed since, and have another name.
                    raise
                log.info("pod %s: probing again: %s", pod.name, error)
            else:
                if not reached:
                    break
                if loop.time() - began > ENFORCEMENT_GRACE_SECONDS:
                    self._refute(pod, reached)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)
        context.failures.pop(pod.uid, None)
        if not brief:
            message = proving.message(context.site(), pod.network, context.alive)
            context.record(pod, Proof(True, message, context.clock()))

    def _proven(self, pod: PodView) -> bool:
        """Whether pods of this kind have tried everything lately."""
        context = self._context
        proof = context.proofs.get((pod.namespace, pod.network))
        lasts = timedelta(seconds=context.settings.proof_interval)
        return proof is not None and proof.enforced and context.clock() < proof.at + lasts

    def _refute(self, pod: PodView, reached: list[str]) -> None:
        message = proving.refutation(pod.name, reached, names.DENY_POLICY)
        news = pod.uid not in self._context.failures
        self._context.failed(pod.uid, Failure(conditions.NETWORK_NOT_ENFORCED, message))
        if news:
            self._context.enqueue_pod_owners(pod)
        self._context.record(pod, Proof(False, message, self._context.clock()))

    async def _label(self, pod: PodView) -> None:
        label = names.STATE_LABEL.replace("/", "~1")
        made = await self._context.api.json_patch(
            PODS,
            pod.namespace,
            pod.name,
            [
                {"op": "test", "path": "/metadata/uid", "value": pod.uid},
                {
                    "op": "test",
                    "path": f"/metadata/labels/{label}",
                    "value": names.STATE_STARTING,
                },
                {
                    "op": "replace",
                    "path": f"/metadata/labels/{label}",
                    "value": names.STATE_WARM,
                },
                # The API server stops tracking who owns which field of this pod, which is a fifth
                # of what the claim's own patch would cost it.
                {"op": "replace", "path": "/metadata/managedFields", "value": [{}]},
            ],
        )
        self._context.usable.add(pod.uid)
        self._context.pods.put(made)

    async def _repeat(self, pod: PodView, attempt: Callable[[], Awaitable[None]]) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await attempt()
                return
            except ConflictError:
                raise
            except TransientError as error:
                log.info("pod %s: again in %.2f s: %s", pod.name, pause, error)
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)


def _check_trees(pod: PodView, info: SandboxInfo) -> None:
    """Raise PermanentError for a pod that did not wait for its repositories."""
    if pod.trees and not info.takes_trees:
        raise PermanentError(
            conditions.POD_FAILED,
            f"pod {pod.name} took no files from git: its image's exec server is too old for that",
        )


def _check_users(pod: PodView, info: SandboxInfo) -> None:
    """Raise PermanentError for a pod that asked for a user namespace and has none: some container
    runtimes ignore what they do not know.
    """
    if pod.own_users and not proving.has_user_namespace(info.uid_map):
        raise PermanentError(
            conditions.USER_NAMESPACE_MISSING,
            f"pod {pod.name} asked for a user namespace of its own and has none: its node "
            f"{pod.node or '(unknown)'} does not make them, or its image's exec server is too old "
            "to tell",
        )
