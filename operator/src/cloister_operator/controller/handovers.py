"""Hands a pod over to its Session: the exec server is told whose it is, then the status says so."""

import asyncio
import logging
from datetime import datetime, timedelta

from .. import manifests, names
from ..api import conditions
from ..api.backend import NewFile
from ..api.conditions import parse_time, timestamp
from ..api.environment import EnvironmentObject
from ..api.pod import PodView
from ..api.session import Phase, SessionObject
from ..errors import ConflictError, TransientError
from ..logs import about
from ..plan.session import SessionPlan, Step, limits, namespace_full
from ..recipe import content_of, references, variables
from ..sandboxes import ClaimPayload
from . import owned, pods, volumes
from .context import Context, address
from .places import of_namespace
from .promises import is_first
from .references import read
from .starts import Starts
from .statuses import SessionStatuses

log = logging.getLogger(__name__)

CREDENTIALS_MARGIN = timedelta(minutes=5)
"""A certificate outlives its session by this, so that a clock that is behind ends nothing."""
REFUSED_PAUSE = 1.0
"""Seconds until a session tries another pod, doubled from one that refuses it to the next: an image
may have an exec server that refuses all, and pods would be made for it as fast as they start.
"""
FRESH = timedelta(seconds=1)
"""A session that is not claimed within this starts when it is, and not when its pod was chosen."""
SILENT_TOLD, SILENT_PATIENCE = 5.0, 30.0
"""Seconds for which a pod does not answer its claim: then its session says so, and then it gets
another one. Its node's network may be broken, which nobody else tells."""
ANSWER_FIRST_SECONDS = 0.005
"""Before a status is written that a caller has been told: both would want the same processors."""
_KEPT = tuple(f"{root}/" for root in manifests.KEPT)


class _Silent(TransientError):
    """The exec server did not answer."""


class HandOvers:
    """Hand-overs by one process."""

    def __init__(self, context: Context, statuses: SessionStatuses, starts: Starts) -> None:
        self._context = context
        self._statuses = statuses
        self._starts = starts

    async def hand_over(
        self, session: SessionObject, environment: EnvironmentObject | None, pod: PodView
    ) -> None:
        """Tell the exec server whose it is, then write that the session runs; raises ConflictError
        where another operator gave its place away.

        Of a pod that another process chose for the session, a caller may have been told that it
        runs there: then it does, whoever has a place by now.
        """
        context, metadata = self._context, session.metadata
        of_another = is_first(pod, session) and not context.promises.made(session)
        if not of_another:
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
            await pods.confirm(context, session)
            await self._give_up(session, pod)
            refused = self._starts.refused(session)
            raise TransientError(str(error), REFUSED_PAUSE * 2 ** min(refused - 1, 6)) from error
        except _Silent as error:
            await self._bear(session, pod, error)
            raise
        if of_another and not replayed:
            context.met.add(pod.uid)
        if pod.uid in context.met:
            # Who made the session for this pod may tell its caller early that it runs there, but
            # only if the exec server did not know the session before.
            await self._check_place(session, environment, pod)
        credentials = None
        if not session.through_api:
            credentials = await self._write_credentials(session, lifetime, now)
        start, at_once = self._start(session, pod, now, replayed=replayed)
        context.placed.discard(pod.uid)
        context.met.discard(pod.uid)
        if at_once:
            context.promises.tell(self._statuses.as_running(session, pod, start), pod)
            self._starts.over(session, pod)
            await asyncio.sleep(ANSWER_FIRST_SECONDS)
            newest = context.sessions.get(*session.key)
            if newest:
                await self.settle(newest)
            return
        await self._statuses.running(session, pod, credentials, start)
        self._starts.over(session, pod)

    def _start(
        self, session: SessionObject, pod: PodView, now: datetime, *, replayed: bool
    ) -> tuple[datetime, bool]:
        """Since when a session runs that its exec server knows now, and whether its caller is told
        before the status is written.

        Whoever writes the status, and when, it has the start that the caller was told. An exec
        server that knew the session before was claimed by a process that may have told; of one that
        stood in line nobody was told, and its wait counts for nothing.
        """
        first = session.first_pod
        if first is None or not is_first(pod, session) or session.in_line:
            return now, False
        if pod.uid in self._context.met:
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
        if not limited or pod.uid in context.placed:
            return
        await context.witness.reached(pod.namespace, pod.resource_version)
        full = self._one_too_many(environment, pod)
        if full:
            await self._statuses.gave_back(session, full, pod)
            await self._give_up(session, pod)
            raise ConflictError(f"there is no place for session {session.metadata.name} by now")
        context.placed.add(pod.uid)

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
        claim = self._dial(pod, payload)
        if volumes.is_own(session, pod):
            return await claim
        adoption = volumes.adopt(self._context, session, pod)
        replayed, adopted = await asyncio.gather(claim, adoption, return_exceptions=True)
        for result in (replayed, adopted):
            if isinstance(result, BaseException):
                raise result
        return replayed is True

    async def _dial(self, pod: PodView, payload: ClaimPayload) -> bool:
        try:
            return await self._context.dialer.claim(address(pod), payload)
        except ConflictError:
            raise
        except TransientError as error:
            raise _Silent(str(error)) from error

    async def _bear(self, session: SessionObject, pod: PodView, error: _Silent) -> None:
        """A pod that stays silent goes, unless a caller may have been told that the session runs in
        it.
        """
        silent = self._starts.silent(session, pod)
        told = is_first(pod, session) and not self._context.promises.made(session)
        message = f"pod {pod.name} does not answer"
        plan = SessionPlan(Step.WAIT, reason=conditions.POD_SILENT, message=message)
        if silent >= SILENT_PATIENCE and not told:
            with about(pod=pod.name):
                log.warning("pod %s does not answer, and is given up: %s", pod.name, error)
            # It answers another operator perhaps, and if that has written that the session runs in
            # it, it does; whoever looks after this was written hands it over no more.
            await self._statuses.gave_back(session, plan, pod)
            await self._give_up(session, pod)
        elif silent >= SILENT_TOLD:
            await self._statuses.waiting(session, plan)

    async def _give_up(self, session: SessionObject, pod: PodView) -> None:
        """Delete a pod in which the session never ran, and what became the session's with it."""
        await volumes.give_back(self._context, session, pod)
        await pods.delete(self._context, pod)

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
