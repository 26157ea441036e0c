"""Reconciles a Session: one pod for it, its claim, its end."""

import asyncio
import logging
from datetime import datetime, timedelta

from .. import manifests, names
from ..api import conditions
from ..api.backend import NewFile
from ..api.common import JSON
from ..api.conditions import parse_time, timestamp
from ..api.environment import EnvironmentObject
from ..api.pod import PodView, view
from ..api.session import Phase, SessionObject
from ..cluster.resources import PODS, SESSIONS
from ..errors import (
    ConflictError,
    NotFoundError,
    PermanentError,
    RefusedError,
    TransientError,
)
from ..metrics import CLAIM_SECONDS
from ..plan.pool import Failure
from ..plan.session import Observed, SessionPlan, Step, limits, plan_session
from ..recipe import content_of, references, variables
from ..sandboxes import ClaimPayload
from . import owned, pods
from .context import Context, Resolved, address
from .events import Recorder
from .references import read
from .statuses import SessionStatuses
from .warmer import Warmer

log = logging.getLogger(__name__)

CREDENTIALS_MARGIN = timedelta(minutes=5)
"""A certificate outlives its session by this, so that a clock that is behind ends nothing."""
REFUTED_PROOF_COUNTS_FOR = timedelta(seconds=30)
"""After this, one more session may try whether the network is closed now."""
PROOF_PATIENCE = 2.0
"""Seconds that a session waits for a warm pod that is being proven, before it gets a new one."""


class SessionReconciler:
    """The reconcile function of Sessions."""

    def __init__(self, context: Context, warmer: Warmer, recorder: Recorder) -> None:
        self._context = context
        self._warmer = warmer
        self._statuses = SessionStatuses(context, recorder)
        self._warm_claims: set[str] = set()
        self._first_seen: dict[str, float] = {}

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Move one Session on as far as it goes now; the answer is when to look again."""
        context = self._context
        session = context.sessions.get(namespace, name)
        if session is None or session.metadata.deletion_timestamp:
            return None
        if session.status.phase is Phase.PENDING:
            self._first_seen.setdefault(session.metadata.uid, _seconds())
        pod = await self._own_pod(session)
        environment = context.environments.get(namespace, session.spec.environment_name)
        observed = self._observe(session, environment, pod)
        now = context.clock()
        try:
            plan = plan_session(session, observed, context.settings.ended_session_ttl, now)
            return await self._execute(session, environment, pod, plan)
        except PermanentError as error:
            failed = SessionPlan(Step.END, Phase.FAILED, error.reason, str(error))
            await self._end(session, pod, failed)
            return 0.0

    async def ended(self, session: SessionObject) -> None:
        """The Session is deleted: its pods go at once, without waiting for owner references."""
        self._first_seen.pop(session.metadata.uid, None)
        self._warm_claims.discard(session.metadata.uid)
        for pod in self._context.pods.group(_pods_of(session)):
            await pods.delete(self._context, pod)

    async def _own_pod(self, session: SessionObject) -> PodView | None:
        """The pod that carries the session's label; of several, which another operator may have
        made at the same time, the one in the status, or else the oldest.

        The others go once the status says which it is: until then another operator may just be
        writing one of them there.
        """
        found = self._context.pods.group(_pods_of(session))
        wanted = session.status.pod_uid
        found.sort(key=lambda pod: (pod.uid != wanted, pod.deleting, pod.created, pod.name))
        pending = session.status.phase is Phase.PENDING
        for extra in found[1:]:
            if not pending and not extra.deleting:
                await pods.delete(self._context, extra)
        if wanted and session.status.phase is Phase.RUNNING:
            if found and found[0].uid == wanted:
                return found[0]
            return await self._read_pod(session)
        return found[0] if found else None

    async def _read_pod(self, session: SessionObject) -> PodView | None:
        """Ask the API server itself before a session is given up."""
        try:
            raw = await self._context.api.get(
                PODS, session.metadata.namespace, session.status.pod_name or ""
            )
        except NotFoundError:
            return None
        found = view(raw)
        if found.uid != session.status.pod_uid:
            return None
        self._context.pods.put(raw)
        return found

    def _observe(
        self, session: SessionObject, environment: EnvironmentObject | None, pod: PodView | None
    ) -> Observed:
        context = self._context
        if pod and session.status.phase is Phase.PENDING:
            self._warmer.ensure(pod, session.metadata.uid)
        return Observed(
            environment=environment,
            pod=pod,
            pod_warm=pod is not None and pod.uid in context.usable,
            pod_failure=context.failures.get(pod.uid) if pod else None,
            others=self._others(session),
            environment_problem=self._environment_problem(environment),
        )

    def _others(self, session: SessionObject) -> int:
        """Sessions of the Environment that count before this one: with a pod, or older."""
        metadata = session.metadata
        mine = (metadata.creation_timestamp or "", metadata.name)
        count = 0
        group = ("environment", metadata.namespace, session.spec.environment_name)
        for other in self._context.sessions.group(group):
            if other.metadata.uid == metadata.uid or other.status.phase.ended:
                continue
            has_pod = bool(self._context.pods.group(_pods_of(other)))
            older = (other.metadata.creation_timestamp or "", other.metadata.name) < mine
            count += has_pod or older
        return count

    def _environment_problem(self, environment: EnvironmentObject | None) -> Failure | None:
        if environment is None:
            return None
        context = self._context
        resolved = self._resolved(environment)
        if resolved is None:
            message = f"Environment {environment.metadata.name} is being looked at"
            return Failure(conditions.ENVIRONMENT_NOT_READY, message)
        if resolved.problem:
            return resolved.problem
        proof = context.proofs.get(environment.metadata.namespace)
        refuted = proof is not None and not proof.enforced
        if proof and refuted and context.clock() < proof.at + REFUTED_PROOF_COUNTS_FOR:
            return Failure(conditions.NETWORK_NOT_ENFORCED, proof.message)
        return None

    def _resolved(self, environment: EnvironmentObject) -> Resolved | None:
        found = self._context.resolved.get(environment.key)
        return found if found and found.of(environment) else None

    async def _execute(
        self,
        session: SessionObject,
        environment: EnvironmentObject | None,
        pod: PodView | None,
        plan: SessionPlan,
    ) -> float | None:
        context = self._context
        if plan.step is Step.GET_POD and environment:
            return await self._get_pod(session, environment)
        if plan.step is Step.HAND_OVER and pod:
            await self._hand_over(session, environment, pod)
            return 0.0
        if plan.step is Step.ASK_ACTIVITY and pod:
            await self._ask_activity(session, pod)
            return 0.0
        if plan.step is Step.END:
            await self._end(session, pod, plan)
            return 0.0
        if plan.step is Step.CLEAN_UP and pod:
            await pods.delete(context, pod)
            return 1.0
        if plan.step is Step.FORGET:
            await self._delete(session)
            return None
        if plan.phase is Phase.PENDING and plan.reason:
            await self._statuses.waiting(session, plan)
            if plan.reason == conditions.NETWORK_NOT_ENFORCED:
                return REFUTED_PROOF_COUNTS_FOR.total_seconds()
        if plan.look_again:
            return max(0.05, (plan.look_again - context.clock()).total_seconds())
        return None

    async def _get_pod(self, session: SessionObject, environment: EnvironmentObject) -> float:
        """Claim a warm pod, or make one; either way the next look hands it over."""
        context = self._context
        resolved = self._resolved(environment)
        if resolved is None or resolved.recipe is None:
            raise TransientError("the Environment changed meanwhile")
        recipe = resolved.recipe
        while candidate := context.take_warm(environment, recipe.hash):
            try:
                made = await self._claim_label(candidate, session)
            except NotFoundError:
                continue
            except TransientError as error:
                found = await self._after_failed_claim(candidate, session, error)
                if found is None:
                    continue
                made = found
            claimed = view(made)
            context.pods.put(made)
            if claimed.alive:
                self._warm_claims.add(session.metadata.uid)
                await self._hand_over(session, environment, claimed)
                return 0.0
        waited = _seconds() - self._first_seen.get(session.metadata.uid, 0.0)
        if waited < PROOF_PATIENCE and context.about_to_be_usable(environment, recipe.hash):
            return 0.02
        await self._check_references(session)
        try:
            await pods.create(context, environment, recipe, session)
        except RefusedError as error:
            refused = SessionPlan(Step.WAIT, reason=conditions.PODS_REFUSED, message=str(error))
            await self._statuses.waiting(session, refused)
            raise
        return 0.0

    async def _after_failed_claim(
        self, candidate: PodView, session: SessionObject, error: TransientError
    ) -> JSON | None:
        """What the API server has decides: the claim may have happened, now or in an earlier
        attempt whose answer was lost. The answer is the pod if it is the session's, None if it is
        another's; raises `error` when it is still to be had.
        """
        context = self._context
        try:
            latest = await context.api.get(PODS, *candidate.key)
        except NotFoundError:
            return None
        except TransientError:
            # Nobody may be kept from a pod that this session perhaps has not got.
            context.reserved.discard(candidate.uid)
            raise
        if view(latest).session_uid == session.metadata.uid:
            return latest
        context.pods.put(latest)
        if isinstance(error, ConflictError):
            return None
        context.reserved.discard(candidate.uid)
        raise error

    async def _check_references(self, session: SessionObject) -> None:
        """Refuse wrong references before a pod is made for them."""
        spec = session.spec
        namespace = session.metadata.namespace
        await read(self._context.api, namespace, references(spec.files, spec.env))

    async def _claim_label(self, pod: PodView, session: SessionObject) -> JSON:
        """The API server's compare-and-swap: of all that try, one gets the pod."""
        state = f"/metadata/labels/{names.STATE_LABEL.replace('/', '~1')}"
        owner = f"/metadata/labels/{names.SESSION_LABEL.replace('/', '~1')}"
        return await self._context.api.json_patch(
            PODS,
            pod.namespace,
            pod.name,
            [
                {"op": "test", "path": "/metadata/uid", "value": pod.uid},
                {"op": "test", "path": state, "value": names.STATE_WARM},
                {"op": "replace", "path": state, "value": names.STATE_CLAIMED},
                {"op": "add", "path": owner, "value": session.metadata.uid},
                {
                    "op": "replace",
                    "path": "/metadata/ownerReferences",
                    "value": [session.owner_reference()],
                },
            ],
        )

    async def _hand_over(
        self, session: SessionObject, environment: EnvironmentObject | None, pod: PodView
    ) -> None:
        """Tell the exec server whose it is, then write that the session runs."""
        context, metadata, spec = self._context, session.metadata, session.spec
        now = context.clock()
        values = await read(context.api, metadata.namespace, references(spec.files, spec.env))
        lifetime = limits(session, environment)[1] + CREDENTIALS_MARGIN
        payload = ClaimPayload(
            session_uid=metadata.uid,
            session_name=metadata.name,
            identity=context.authority.session_server(metadata.uid, now, lifetime),
            env=variables(spec.env, values),
            files=[
                NewFile(file.path, file.permissions, content_of(file, index, values))
                for index, file in enumerate(spec.files)
            ],
        )
        try:
            await context.dialer.claim(address(pod), payload)
        except ConflictError as error:
            # It cannot be: the label is ours. Whatever it is, this pod serves nobody.
            log.warning("pod %s refuses session %s: %s", pod.name, metadata.name, error)
            await pods.delete(context, pod)
            raise
        credentials = None
        if not session.through_api:
            credentials = await self._write_credentials(session, lifetime, now)
        await self._statuses.running(session, pod, credentials, now)
        self._observe_claim(session.metadata.uid)

    async def _write_credentials(
        self, session: SessionObject, lifetime: timedelta, now: datetime
    ) -> str:
        identity = self._context.authority.session_client(session.metadata.uid, now, lifetime)
        body = manifests.credentials_secret(
            session, identity.certificate_pem, identity.private_key_pem, identity.ca_pem
        )
        await owned.create(self._context.api, session.metadata.namespace, body)
        return names.credentials_secret(session.metadata.name)

    def _observe_claim(self, uid: str) -> None:
        start = "warm" if uid in self._warm_claims else "cold"
        seen = self._first_seen.pop(uid, None)
        if seen is not None:
            CLAIM_SECONDS.labels(start).observe(_seconds() - seen)
        self._warm_claims.discard(uid)

    async def _ask_activity(self, session: SessionObject, pod: PodView) -> None:
        """The deadline is due by what the status says: the exec server knows better."""
        now = self._context.clock()
        found = await self._context.dialer.activity(address(pod), session.metadata.uid)
        status = session.status
        started = parse_time(status.started_at) if status.started_at else now
        last = max(started, now - found.idle_for)
        if found.running_calls:
            last = now
        environment = self._context.environments.get(
            session.metadata.namespace, session.spec.environment_name
        )
        idle = limits(session, environment)[0]
        meters = {
            "running_seconds": int((now - started).total_seconds()),
            "active_seconds": int(min(found.active, now - started).total_seconds()),
            # Rounded up: rounded down the deadline would be due again at once.
            "last_activity_time": timestamp(last + timedelta(seconds=last.microsecond > 0)),
        }
        if now >= last + idle:
            message = f"no tool ran for {int(idle.total_seconds())} s"
            plan = SessionPlan(Step.END, Phase.TERMINATED, conditions.IDLE_TIMEOUT, message)
            await self._end(session, pod, plan, meters)
        else:
            await self._statuses.patch(session, meters)

    async def _end(
        self,
        session: SessionObject,
        pod: PodView | None,
        plan: SessionPlan,
        meters: dict[str, object] | None = None,
    ) -> None:
        """Write the end first: a kill in between leaves a pod that the next look deletes."""
        await self._statuses.ended(session, plan, meters)
        if pod:
            await pods.delete(self._context, pod)

    async def _delete(self, session: SessionObject) -> None:
        namespace, name = session.key
        try:
            await self._context.api.delete(SESSIONS, namespace, name, uid=session.metadata.uid)
        except NotFoundError:
            log.debug("session %s is gone", name)


def _seconds() -> float:
    """The event loop's clock."""
    return asyncio.get_running_loop().time()


def _pods_of(session: SessionObject) -> tuple[str, str, str]:
    return "session", session.metadata.namespace, session.metadata.uid
