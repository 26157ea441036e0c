"""Reconciles a Session: one pod for it, from its claim to its end."""

import contextlib
from dataclasses import replace
from datetime import timedelta

from .. import names
from ..api import conditions
from ..api.environment import EnvironmentObject
from ..api.pod import PodView, view
from ..api.session import Phase, SessionObject
from ..cluster.resources import PODS, SECRETS
from ..errors import NotFoundError, PermanentError, TransientError
from ..plan.failure import Failure
from ..plan.line import worth_telling
from ..plan.session import Observed, Promise, SessionPlan, Step, plan_session
from . import pods, volumes
from .claims import Claims
from .context import Context, Resolved
from .endings import Endings
from .events import Recorder
from .handovers import HandOvers
from .promises import may_be_first
from .starts import Starts
from .statuses import SessionStatuses
from .warmer import Warmer

RECIPE_PATIENCE = timedelta(seconds=30)
"""A pod is this old before it is given up for its recipe: an operator that has yet to hear of the
Environment's deletion would make the next one at once.
"""
REFUTED_PROOF_COUNTS_FOR = timedelta(seconds=30)
"""After this, one more session may try whether the network is closed now."""


class SessionReconciler:
    """The reconcile function of Sessions."""

    def __init__(self, context: Context, warmer: Warmer, recorder: Recorder) -> None:
        self._context = context
        self._warmer = warmer
        self._statuses = SessionStatuses(context, recorder)
        self._starts = Starts(context)
        self._hand_overs = HandOvers(context, self._statuses, self._starts)
        self._claims = Claims(context, self._statuses, self._hand_overs, self._starts)
        self._endings = Endings(context, self._statuses)

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Move one Session on as far as it goes now; the answer is when to look again."""
        context = self._context
        session = context.sessions.get(namespace, name)
        if session is None:
            self._statuses.forget(namespace, name)
            return None
        if session.metadata.deletion_timestamp:
            # Whoever's finalizer keeps it, it keeps no pod.
            await self.ended(session)
            return None
        if session.status.phase is Phase.PENDING:
            self._starts.waits(session)
        if await self._hand_overs.settle(session):
            return 0.0
        pod = await self._own_pod(session)
        environment = context.environments.get(namespace, session.spec.environment_name)
        observed = await self._observe(session, environment, pod)
        now = context.clock()
        try:
            plan = plan_session(session, observed, context.settings.ended_session_ttl, now)
            return await self._execute(session, environment, pod, plan)
        except PermanentError as error:
            failed = SessionPlan(Step.END, Phase.FAILED, error.reason, str(error))
            await self._endings.end(session, pod, failed)
            return 0.0

    def forget_strangers(self) -> None:
        """Drop what is known about sessions that are not there: a reconcile may have noted it when
        its session was just deleted.
        """
        self._starts.keep({each.metadata.uid for each in self._context.sessions.all()})

    async def ended(self, session: SessionObject) -> None:
        """The Session is deleted: its pods go at once, without waiting for owner references."""
        self._starts.ended(session)
        for pod in self._context.pods.group(_pods_of(session)):
            if not pod.deleting:
                await pods.delete(self._context, pod)

    async def _own_pod(self, session: SessionObject) -> PodView | None:
        """The pod that carries the session's label; of several, which another operator may have
        made at the same time, the one in the status, or else the oldest.

        The others go once the status says which it is: until then another operator may just be
        writing one of them there. One without the session's workspace goes at once: who claimed
        that had yet to hear of the workspace.
        """
        all_of_it = self._context.pods.group(_pods_of(session))
        wanted, kept = session.status.pod_uid, session.status.workspace_claim
        found = [pod for pod in all_of_it if kept in (None, pod.claim)]
        found.sort(key=lambda pod: (pod.uid != wanted, pod.deleting, pod.created, pod.name))
        decided = found[:1] if session.status.phase is not Phase.PENDING else found
        extras = [pod for pod in all_of_it if pod not in decided and not pod.deleting]
        if extras:
            await pods.confirm(self._context, session)
            for extra in extras:
                await volumes.give_back(self._context, session, extra)
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

    async def _observe(
        self, session: SessionObject, environment: EnvironmentObject | None, pod: PodView | None
    ) -> Observed:
        context = self._context
        volume_problem = None
        # The pod of before, which is on its way out, is nobody's to warm.
        if pod and session.status.phase is Phase.PENDING and pod.uid != session.status.pod_uid:
            self._warmer.ensure(pod, session.metadata.uid)
            volume_problem = (
                context.refusal([pod])
                or await volumes.problem(context, pod)
                or context.egress.problem([pod])
            )
        return Observed(
            environment=environment,
            pod=pod,
            pod_warm=pod is not None and pod.uid in context.usable,
            pod_failure=context.failures.get(pod.uid) if pod else None,
            others=context.places.before(session),
            in_line=context.places.ahead(session),
            namespace_others=context.namespace_places.before(session)
            if context.namespace_places
            else 0,
            namespace_most=context.settings.max_sessions_per_namespace,
            environment_problem=self._environment_problem(environment),
            volume_problem=volume_problem,
            recipe_gone=await self._recipe_gone(session, environment, pod),
            promise=await self._promise(session, pod),
        )

    async def _promise(self, session: SessionObject, pod: PodView | None) -> Promise:
        """What is known of the pod that the session was made for, and of what callers know."""
        context, first = self._context, session.first_pod
        if first is None or session.status.phase is not Phase.PENDING:
            return Promise.NONE
        # What this process itself has told is written before anything is planned.
        mine = context.promises.made(session)
        if pod:
            return Promise.KEPT if pod.uid == first.uid and not mine else Promise.NONE
        found = context.pods.get(session.metadata.namespace, first.name)
        if found is None or found.uid != first.uid or found.state == names.STATE_STARTING:
            # The mirror may be behind who made the session for a pod that was warm.
            gone = Promise.NONE if session.in_line else Promise.GONE
            if mine:
                return Promise.NONE
            try:
                raw = await context.api.get(PODS, session.metadata.namespace, first.name)
            except NotFoundError:
                return gone
            context.pods.put(raw)
            found = view(raw)
        if found.uid != first.uid:
            return gone
        if not may_be_first(found, session):
            return Promise.NONE
        return Promise.OURS if mine else Promise.OPEN

    async def _recipe_gone(
        self, session: SessionObject, environment: EnvironmentObject | None, pod: PodView | None
    ) -> bool:
        """Whether a pod that has yet to start mounts the recipe of a deleted Environment.

        Asked of the API server, and only where the recipe is not the one that the Environment's
        own reconcile keeps there.
        """
        if pod is None or pod.ip or pod.deleting or session.status.phase is not Phase.PENDING:
            return False
        if self._context.clock() < pod.created + RECIPE_PATIENCE:
            return False
        resolved = self._resolved(environment) if environment else None
        if resolved and resolved.recipe and resolved.recipe.hash == pod.recipe:
            return False
        secret = names.recipe_secret(pod.environment, pod.recipe)
        try:
            await self._context.api.get(SECRETS, pod.namespace, secret)
        except NotFoundError:
            return True
        return False

    def _environment_problem(self, environment: EnvironmentObject | None) -> Failure | None:
        if environment is None:
            return None
        context = self._context
        resolved = self._resolved(environment)
        if resolved is None:
            message = f"Environment {environment.metadata.name} is being looked at"
            return Failure(conditions.ENVIRONMENT_NOT_READY, message)
        # What was found out since the Environment was looked at holds at once.
        problem = resolved.problem or context.unguarded(environment.metadata.namespace)
        if problem:
            return problem
        network = resolved.recipe.reach.network if resolved.recipe else names.NETWORK_NONE
        proof = context.proofs.get((environment.metadata.namespace, network))
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
        if plan.step is Step.WAIT:
            return await self._wait(session, environment, plan)
        if plan.step is Step.GET_POD and environment:
            resolved = self._resolved(environment)
            if resolved is None or resolved.recipe is None:
                raise TransientError("the Environment changed meanwhile")
            with contextlib.ExitStack() as admitted:
                admitted.enter_context(context.places.admitting(session))
                if context.namespace_places:
                    admitted.enter_context(context.namespace_places.admitting(session))
                return await self._claims.get_pod(session, environment, resolved.recipe)
        if plan.step is Step.HAND_OVER and pod:
            await self._hand_overs.hand_over(session, environment, pod)
        elif plan.step is Step.ASK_ACTIVITY and pod:
            await self._endings.ask_activity(session, environment, pod)
        elif plan.step is Step.SUSPEND:
            await self._endings.suspend(session, environment, pod, plan)
        elif plan.step is Step.LET_GO and session.first_pod:
            first = context.pods.get(session.metadata.namespace, session.first_pod.name)
            if first:
                await pods.delete_unclaimed(context, first)
            return 1.0
        elif plan.step is Step.DECLINE:
            await self._statuses.declined(session, plan)
        elif plan.step is Step.RESUME:
            await self._statuses.resuming(session)
        elif plan.step is Step.RECOVER:
            await self._endings.recover(session, pod, plan)
        elif plan.step is Step.END:
            await self._endings.end(session, pod, plan)
        elif plan.step is Step.CLEAN_UP and pod:
            if plan.phase is Phase.SUSPENDED:
                await pods.confirm(self._context, session)
            recipe_gone = plan.phase is Phase.PENDING and not pod.ip
            await (pods.delete_unchanged if recipe_gone else pods.delete)(context, pod)
            return 1.0
        elif plan.step is Step.FORGET:
            await self._endings.delete(session)
            return None
        return 0.0

    async def _wait(
        self, session: SessionObject, environment: EnvironmentObject | None, plan: SessionPlan
    ) -> float | None:
        if plan.phase is Phase.PENDING and plan.reason:
            # Until it knows the Environment itself, what an operator said before is better: two
            # that know different things would contradict each other as fast as they can write.
            knows = environment is None or self._resolved(environment) is not None
            if _is_news(session, plan) and (knows or session.status.reason is None):
                later = await self._statuses.waiting(session, plan)
                if later and (plan.look_again is None or later < plan.look_again):
                    plan = replace(plan, look_again=later)
            if plan.reason == conditions.NETWORK_NOT_ENFORCED:
                return REFUTED_PROOF_COUNTS_FOR.total_seconds()
        if plan.look_again:
            return max(0.05, (plan.look_again - self._context.clock()).total_seconds())
        return None


def _pods_of(session: SessionObject) -> tuple[str, str, str]:
    return "session", session.metadata.namespace, session.metadata.uid


def _is_news(session: SessionObject, plan: SessionPlan) -> bool:
    """Whether a session that waits is told so again."""
    if plan.queue_position is None or session.status.reason != plan.reason:
        return True
    return worth_telling(session.status.queue_position, plan.queue_position)
