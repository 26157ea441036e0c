"""Gives a Session its pod: a warm one by compare-and-swap, or a new one."""

from .. import names
from ..api.common import JSON
from ..api.conditions import timestamp
from ..api.environment import EnvironmentObject
from ..api.pod import PodView, view
from ..api.session import SessionObject
from ..cluster.resources import PODS
from ..errors import ConflictError, NotFoundError, RefusedError, TransientError
from ..metrics import CLAIM_CONFLICTS
from ..plan.session import SessionPlan, Step
from ..recipe import Recipe, references
from . import pods, volumes
from .context import Context
from .handovers import HandOvers
from .promises import is_first, may_be_first
from .references import read
from .starts import Starts
from .statuses import SessionStatuses

PROOF_PATIENCE = 2.0
"""Seconds that a session waits for a warm pod that is being proven, before it gets a new one."""
TAKEN_LOOK = 0.05
"""Seconds until a session looks again that has to know what became of the pod it was made for."""


class Claims:
    """Claims for one process."""

    def __init__(
        self,
        context: Context,
        statuses: SessionStatuses,
        hand_overs: HandOvers,
        starts: Starts,
    ) -> None:
        self._context = context
        self._statuses = statuses
        self._hand_overs = hand_overs
        self._starts = starts
        self._began = timestamp(context.clock())

    async def get_pod(
        self, session: SessionObject, environment: EnvironmentObject, recipe: Recipe
    ) -> float:
        """Claim a warm pod, or make one; either way the next look hands it over.

        A session that has a workspace gets a new pod on it: no volume can be put into a pod that
        runs.
        """
        context = self._context
        again = await self._get_first(session, environment)
        if again is not None:
            return again
        if not await self._has_workspace(session, environment):
            while candidate := context.take_warm(environment, recipe.hash):
                claimed = await self._claim(candidate, session)
                if claimed and claimed.alive:
                    self._starts.warm(session)
                    await self._hand_overs.hand_over(session, environment, claimed)
                    return 0.0
            patient = self._starts.waited(session) < PROOF_PATIENCE
            if patient and context.about_to_be_usable(environment, recipe.hash):
                return 0.02
        await self._check_references(session)
        self._starts.cold(session)
        try:
            claim = await volumes.of_session(context, session, environment)
            await pods.create(context, environment, recipe, session, claim)
        except RefusedError as error:
            refused = SessionPlan(Step.WAIT, reason=pods.refusal(error), message=str(error))
            await self._statuses.waiting(session, refused)
            raise
        return 0.0

    async def _get_first(
        self, session: SessionObject, environment: EnvironmentObject
    ) -> float | None:
        """Claim the pod that the session was made for; None when it can have another one."""
        context, first = self._context, session.first_pod
        if first is None:
            return None
        mine = session.in_line or context.promises.made(session)
        pod = context.pods.get(session.metadata.namespace, first.name)
        if pod and is_first(pod, session) and not may_be_first(pod, session):
            return None
        if pod is None or not is_first(pod, session) or pod.state != names.STATE_WARM:
            return None if mine else TAKEN_LOOK
        if not context.promises.take(session):
            if pod.uid in context.reserved:
                # Another session of this process is about to have it, or not to have it. One that
                # the pool deletes had no session before, and nobody runs in it after.
                return None if mine or pod.deleting else TAKEN_LOOK
            context.reserved.add(pod.uid)
        claimed = await self._claim(pod, session)
        if claimed is None or not claimed.alive:
            return None if mine else TAKEN_LOOK
        self._starts.warm(session)
        if claimed.uid in context.usable:
            await self._hand_overs.hand_over(session, environment, claimed)
        return 0.0

    async def _has_workspace(self, session: SessionObject, environment: EnvironmentObject) -> bool:
        """Whether there is a volume for it, be it from an attempt that got no further.

        The API server is asked only about sessions that an attempt can have been made for: not
        about one that was just created.
        """
        if session.status.workspace_claim is not None:
            return True
        new = (session.metadata.creation_timestamp or "") > self._began
        if not environment.spec.workspace.persistent or (new and not self._starts.is_cold(session)):
            return False
        return await volumes.made_for(self._context, session)

    async def _claim(self, candidate: PodView, session: SessionObject) -> PodView | None:
        """The pod as it is when it has become the session's; None when it is not to be had."""
        try:
            made = await self._claim_label(candidate, session)
        except NotFoundError:
            CLAIM_CONFLICTS.inc()
            return None
        except TransientError as error:
            found = await self._after_failed_claim(candidate, session, error)
            if found is None:
                CLAIM_CONFLICTS.inc()
                return None
            made = found
        self._context.pods.put(made)
        return view(made)

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
        now = view(latest)
        if now.session_uid == session.metadata.uid:
            return latest
        context.pods.put(latest)
        # The API server also answers with a conflict when it came too late for other reasons:
        # somebody wrote something else, again and again.
        free = now.uid == candidate.uid and now.state == names.STATE_WARM and now.alive
        if isinstance(error, ConflictError) and not free:
            if now.state != names.STATE_CLAIMED:
                # It has ended, and is nobody's: its pool gets rid of it.
                context.reserved.discard(candidate.uid)
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
