"""Gives a Session its pod: a warm one by compare-and-swap, or a new one; then its hand-over."""

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
from ..cluster.resources import PODS
from ..errors import ConflictError, NotFoundError, RefusedError, TransientError
from ..logs import about
from ..metrics import CLAIM_CONFLICTS, CLAIM_SECONDS, CLAIMS, OK
from ..plan.session import SessionPlan, Step, limits, namespace_full
from ..recipe import Recipe, content_of, references, variables
from ..sandboxes import ClaimPayload
from . import owned, pods, volumes
from .context import Context, address
from .places import of_namespace
from .promises import is_first, may_be_first
from .references import read
from .statuses import SessionStatuses

log = logging.getLogger(__name__)

CREDENTIALS_MARGIN = timedelta(minutes=5)
"""A certificate outlives its session by this, so that a clock that is behind ends nothing."""
PROOF_PATIENCE = 2.0
"""Seconds that a session waits for a warm pod that is being proven, before it gets a new one."""
REFUSED_PAUSE = 1.0
"""Seconds until a session tries another pod, doubled from one that refuses it to the next: an image
may have an exec server that refuses all, and pods would be made for it as fast as they start.
"""
TAKEN_LOOK = 0.05
"""Seconds until a session looks again that has to know what became of the pod it was made for."""
FRESH = timedelta(seconds=1)
"""A session that is not claimed within this starts when it is, and not when its pod was chosen."""
ANSWER_FIRST_SECONDS = 0.005
"""Before a status is written that a caller has been told: both would want the same processors."""
_KEPT = tuple(f"{root}/" for root in manifests.KEPT)


class Claims:
    """Claims for one process; what it remembers is for its figures and its patience."""

    def __init__(self, context: Context, statuses: SessionStatuses) -> None:
        self._context = context
        self._statuses = statuses
        self._warm_claims: set[str] = set()
        self._first_seen: dict[str, float] = {}
        self._began = timestamp(context.clock())
        self._placed: set[str] = set()
        """UIDs of pods whose sessions are known not to be one too many."""
        self._without_warm: set[str] = set()
        """UIDs of sessions for which this process made a pod, or was about to."""
        self._refused: dict[str, int] = {}
        """By UID of the session, how many pods refused it."""

    def waits(self, session: SessionObject) -> None:
        """The session waits for a pod."""
        self._first_seen.setdefault(session.metadata.uid, _seconds())

    def forget(self, session: SessionObject) -> None:
        """The session is gone."""
        uid = session.metadata.uid
        waited = self._first_seen.pop(uid, None) is not None
        if waited and session.status.phase is Phase.PENDING:
            CLAIMS.labels(*self._context.series(*session.environment_key), "none", "deleted").inc()
        self._warm_claims.discard(uid)
        self._without_warm.discard(uid)
        self._refused.pop(uid, None)

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
                    self._warm_claims.add(session.metadata.uid)
                    await self.hand_over(session, environment, claimed)
                    return 0.0
            waited = _seconds() - self._first_seen.get(session.metadata.uid, 0.0)
            if waited < PROOF_PATIENCE and context.about_to_be_usable(environment, recipe.hash):
                return 0.02
        await self._check_references(session)
        self._without_warm.add(session.metadata.uid)
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
        mine = context.promises.made(session)
        pod = context.pods.get(session.metadata.namespace, first.name)
        if pod and is_first(pod, session) and not may_be_first(pod, session):
            return None
        if pod is None or not is_first(pod, session) or pod.state != names.STATE_WARM:
            return None if mine else TAKEN_LOOK
        if not context.promises.take(session):
            if pod.uid in context.reserved:
                # Another session of this process is about to have it, or not to have it.
                return None if mine else TAKEN_LOOK
            context.reserved.add(pod.uid)
        claimed = await self._claim(pod, session)
        if claimed is None or not claimed.alive:
            return None if mine else TAKEN_LOOK
        self._warm_claims.add(session.metadata.uid)
        if claimed.uid in context.usable:
            await self.hand_over(session, environment, claimed)
        return 0.0

    async def _has_workspace(self, session: SessionObject, environment: EnvironmentObject) -> bool:
        """Whether there is a volume for it, be it from an attempt that got no further.

        The API server is asked only about sessions that an attempt can have been made for: not
        about one that was just created.
        """
        if session.status.workspace_claim is not None:
            return True
        metadata = session.metadata
        new = (metadata.creation_timestamp or "") > self._began
        if not environment.spec.workspace.persistent or (
            new and metadata.uid not in self._without_warm
        ):
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

    async def hand_over(
        self, session: SessionObject, environment: EnvironmentObject | None, pod: PodView
    ) -> None:
        """Tell the exec server whose it is, then write that the session runs; raises ConflictError
        where another operator gave its place away.
        """
        context, metadata = self._context, session.metadata
        if not is_first(pod, session) or context.promises.made(session):
            # Of another one a caller may have been told that it runs there.
            await self._check_place(session, environment, pod)
        now = context.clock()
        lifetime = limits(session, environment)[1] + CREDENTIALS_MARGIN
        payload = await self._payload(session, now, lifetime)
        try:
            replayed = await self._tell(session, pod, payload)
        except ConflictError as error:
            # It cannot be: the label is ours. Whatever it is, this pod serves nobody.
            with about(pod=pod.name):
                log.warning("pod %s refuses session %s: %s", pod.name, metadata.name, error)
            await pods.delete(context, pod)
            refused = self._refused[metadata.uid] = self._refused.get(metadata.uid, 0) + 1
            raise TransientError(str(error), REFUSED_PAUSE * 2 ** min(refused - 1, 6)) from error
        credentials = None
        if not session.through_api:
            credentials = await self._write_credentials(session, lifetime, now)
        self._placed.discard(pod.uid)
        start, at_once = self._start(session, pod, now, replayed=replayed)
        if at_once:
            context.promises.tell(self._statuses.as_running(session, pod, start), pod)
            self._observe_claim(session, pod)
            await asyncio.sleep(ANSWER_FIRST_SECONDS)
            newest = context.sessions.get(*session.key)
            if newest:
                await self.settle(newest)
            return
        await self._statuses.running(session, pod, credentials, start)
        self._observe_claim(session, pod)

    def _start(
        self, session: SessionObject, pod: PodView, now: datetime, *, replayed: bool
    ) -> tuple[datetime, bool]:
        """Since when a session runs that its exec server knows now, and whether its caller is told
        before the status is written.

        Whoever writes the status, and when, it has the start that the caller was told. An exec
        server that knew the session before was claimed by a process that may have told.
        """
        first = session.first_pod
        if first is None or not is_first(pod, session):
            return now, False
        at_once = not replayed and self._context.promises.made(session) and now < first.at + FRESH
        if not at_once and not replayed:
            return now, False
        # The annotation is anybody's who may change the Session.
        made = parse_time(session.metadata.creation_timestamp or timestamp(now))
        return min(now, max(first.at, made)), at_once

    async def settle(self, session: SessionObject) -> bool:
        """Write what callers were told already, if they were."""
        told = self._context.promises.told(session)
        if told is None or session.status.phase is not Phase.PENDING:
            return False
        since = told.session.status.running_since
        start = parse_time(since) if since else self._context.clock()
        await self._statuses.running(session, told.pod, None, start)
        return True

    async def _check_place(
        self, session: SessionObject, environment: EnvironmentObject | None, pod: PodView
    ) -> None:
        """With two operators at work, both may give the last place away, be it an Environment's or
        a namespace's. Each first takes a pod and then waits until the watch tells of that: of those
        that are one too many the last one sees all the others, and steps back.

        The status is written first, on the version that was looked at: another operator may be
        handing over the very same pod, and if it has written that the session runs, it runs.
        """
        context = self._context
        most = environment.spec.pool.max_sessions if environment else None
        limited = most is not None or context.namespace_places is not None
        if not limited or pod.uid in self._placed:
            return
        await context.witness.reached(pod.namespace, pod.resource_version)
        full = self._one_too_many(environment, pod)
        if full:
            await self._statuses.gave_back(session, full, pod)
            await pods.delete(context, pod)
            raise ConflictError(f"there is no place for session {session.metadata.name} by now")
        self._placed.add(pod.uid)

    def _one_too_many(
        self, environment: EnvironmentObject | None, pod: PodView
    ) -> SessionPlan | None:
        """What a session is told whose pod was taken when the last place was gone."""
        context = self._context
        most = environment.spec.pool.max_sessions if environment else None
        if environment and most is not None and context.places.taken(environment.key) > most:
            message = (
                f"pod {pod.name} was given back, as {most} other sessions run; this one gets "
                "a pod when another ends"
            )
            return SessionPlan(
                Step.WAIT, reason=conditions.QUEUED, message=message, queue_position=1
            )
        most, places = context.settings.max_sessions_per_namespace, context.namespace_places
        if places and places.taken(of_namespace(*pod.key)) > most:
            return namespace_full(pod.namespace, most)
        return None

    async def _tell(self, session: SessionObject, pod: PodView, payload: ClaimPayload) -> bool:
        """Claim the exec server, and beside it the workspace: before the status says that the
        session runs, the workspace must not be one that goes with the pod.

        The answer is whether the exec server had been claimed for it before, by what it says.
        """
        claim = self._context.dialer.claim(address(pod), payload)
        if pod.claim != pod.name:
            return await claim
        adoption = volumes.adopt(self._context, session, pod)
        replayed, adopted = await asyncio.gather(claim, adoption, return_exceptions=True)
        for result in (replayed, adopted):
            if isinstance(result, BaseException):
                raise result
        return replayed is True

    async def _payload(
        self, session: SessionObject, now: datetime, lifetime: timedelta
    ) -> ClaimPayload:
        context, metadata, spec = self._context, session.metadata, session.spec
        values = await read(context.api, metadata.namespace, references(spec.files, spec.env))
        return ClaimPayload(
            session_uid=metadata.uid,
            session_name=metadata.name,
            identity=context.authority.session_server(metadata.uid, now, lifetime),
            env=variables(spec.env, values),
            files=[
                NewFile(file.path, file.permissions, content_of(file, index, values))
                for index, file in enumerate(spec.files)
                # What its tools made of a file since must not be overwritten.
                if not (session.resumed and file.path.startswith(_KEPT))
            ],
        )

    async def _write_credentials(
        self, session: SessionObject, lifetime: timedelta, now: datetime
    ) -> str:
        identity = self._context.authority.session_client(session.metadata.uid, now, lifetime)
        body = manifests.credentials_secret(
            session, identity.certificate_pem, identity.private_key_pem, identity.ca_pem
        )
        api, namespace = self._context.api, session.metadata.namespace
        if session.resumed:
            # The next sandbox may be certified by a CA that the Secret of before does not know.
            await owned.remove_stale(api, namespace, body, "ca.crt")
        await owned.create(api, namespace, body)
        return names.credentials_secret(session.metadata.name)

    def _observe_claim(self, session: SessionObject, pod: PodView) -> None:
        uid = session.metadata.uid
        start = _start_of(session, pod, uid in self._warm_claims)
        CLAIMS.labels(*self._context.series(*session.environment_key), start, OK).inc()
        seen = self._first_seen.pop(uid, None)
        if seen is not None:
            CLAIM_SECONDS.labels(start).observe(_seconds() - seen)
        self._warm_claims.discard(uid)
        self._without_warm.discard(uid)
        self._refused.pop(uid, None)


def _start_of(session: SessionObject, pod: PodView, known_warm: bool) -> str:
    """How a session got its pod, also where another operator gave it."""
    if session.status.started_at is not None:
        return "resumed"
    # A pod made for a session is younger than it; the API server's times are whole seconds.
    older = timestamp(pod.created) < (session.metadata.creation_timestamp or "")
    return "warm" if known_warm or older else "cold"


def _seconds() -> float:
    """The event loop's clock."""
    return asyncio.get_running_loop().time()
