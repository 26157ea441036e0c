"""Sessions for the Sessions API: made, followed and ended through the same reconciler."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Literal

from .. import names
from ..api import conditions
from ..api.backend import ALREADY_EXISTS, EgressRecord, NewSession, SessionChange
from ..api.common import JSON
from ..api.session import FirstPod, Phase, SessionObject
from ..cluster.resources import SESSIONS
from ..errors import (
    ConflictError,
    LostError,
    NotFoundError,
    PermanentError,
    QuotaError,
    TransientError,
)
from ..plan.session import declined, expires_at
from .calls import body_of, digest, same_call
from .context import Context

_WATCH_BUFFER = 1000
_Watched = tuple[str, str]
"""Namespace and name; all of the namespace without a name."""
_HOPELESS = frozenset({conditions.ENVIRONMENT_NOT_FOUND})


class Backend:
    """api.backend.SessionsBackend."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settled: dict[tuple[str, str], set[asyncio.Future[None]]] = {}
        self._watchers: dict[_Watched, set[asyncio.Queue[SessionChange | None]]] = {}
        self._making: dict[tuple[str, str, str], Counter[str]] = {}
        """Calls under way by request: names of the sessions that they make."""
        self._coming: dict[str, Counter[str]] = {}
        """By namespace, the sessions that calls under way make or resume."""
        context.sessions.listen(self._changed)
        context.promises.listen(lambda session: self._changed(None, session))

    def _changed(self, before: SessionObject | None, after: SessionObject | None) -> None:
        session = after or before
        if session is None:
            return
        after = self._context.promises.shown(after) if after else None
        if after is None or _settled(after):
            for future in self._settled.pop(session.key, ()):
                if not future.done():
                    future.set_result(None)
        change = SessionChange(session=after) if after else SessionChange(deleted=session.key)
        namespace, name = session.key
        for watched in ((namespace, ""), (namespace, name)):
            watchers = self._watchers.get(watched, set())
            for queue in list(watchers):
                if queue.full():
                    # Too slow: its stream ends, and the caller starts again from the present state.
                    watchers.discard(queue)
                    queue.get_nowait()
                    queue.put_nowait(None)
                else:
                    queue.put_nowait(change)

    async def create_session(self, new: NewSession) -> SessionObject:
        """See SessionsBackend."""
        context = self._context
        if context.environments.get(new.namespace, new.environment) is None:
            raise PermanentError(
                conditions.ENVIRONMENT_NOT_FOUND,
                f"there is no Environment {new.environment} in namespace {new.namespace}",
                "environment",
            )
        # A call without a request id is never repeated.
        request = digest(new.caller, new.request_id or secrets.token_hex(16))
        # Not of the payload: another one under the same request id has to meet the first.
        name = new.name or f"{new.environment}-{request[:12]}"
        key = ("request", new.namespace, request)
        # With another name or Environment it would not meet the first by its name.
        others = {each.metadata.name for each in context.sessions.group(key)}
        others = (others | set(self._making.get(key, ()))) - {name}
        if others:
            raise _repeated(min(others))
        with self._within_limit(new.namespace, name):
            under_way = self._making.setdefault(key, Counter())
            under_way[name] += 1
            first = self._choose_first(new.namespace, name, new.environment)
            try:
                made = await self._make(new, name, request, first)
                context.sessions.put(made)
            finally:
                there = context.sessions.get(new.namespace, name)
                if first and there is None:
                    context.promises.doubt((new.namespace, name))
                elif first and there and there.first_pod != first:
                    context.promises.drop((new.namespace, name))
                under_way[name] -= 1
                if not under_way[name]:
                    # All of them have this name.
                    self._making.pop(key, None)
        session = SessionObject.parse(made)
        context.queue.add(("session", *session.key))
        return self.get_session(*session.key) or session

    def _choose_first(self, namespace: str, name: str, environment: str) -> FirstPod | None:
        """Reserve a warm pod for a Session that is about to be made.

        None where there is none, or where the Session's status has to decide: about places, of
        which another operator may give away the last, and about volumes, which outlive their pods.
        """
        context, key = self._context, (namespace, name)
        found = context.environments.get(namespace, environment)
        resolved = context.resolved.get((namespace, environment))
        if found is None or resolved is None or not resolved.of(found) or resolved.recipe is None:
            return None
        limited = found.spec.pool.max_sessions is not None or context.namespace_places is not None
        if limited or found.spec.workspace.persistent or not context.queue.runs:
            return None
        if key in context.promises or context.sessions.get(*key):
            return None
        pod = context.take_warm(found, resolved.recipe.hash)
        if pod is None:
            return None
        first = FirstPod(pod.name, pod.uid, context.clock())
        context.promises.make(key, first)
        return first

    async def _make(self, new: NewSession, name: str, request: str, first: FirstPod | None) -> JSON:
        body = body_of(new, name, request)
        if first:
            body["metadata"]["annotations"][names.FIRST_POD] = str(first)
        try:
            return await self._context.api.create(SESSIONS, new.namespace, body)
        except (ConflictError, LostError):
            made = await self._made(new.namespace, name)
            if not same_call(made, body):
                raise _taken(new, name) from None
            return made

    async def _made(self, namespace: str, name: str) -> JSON:
        try:
            return await self._context.api.get(SESSIONS, namespace, name)
        except NotFoundError:
            # The write was lost on its way, or the session was deleted since.
            raise TransientError(f"session {name} was not made; repeat the call") from None

    @contextlib.contextmanager
    def _within_limit(self, namespace: str, name: str, *, resumed: bool = False) -> Iterator[None]:
        """While a session is made or resumed it counts, so that a burst of calls gets no more than
        calls one after the other.

        Raises QuotaError when the namespace has as many sessions as the platform allows. One that
        is there already is made by a call that is repeated, and refused only when it is to resume.
        """
        most = self._context.settings.max_sessions_per_namespace
        if most and (resumed or self.get_session(namespace, name) is None):
            found = self._context.sessions.group(("namespace", namespace))
            others = {each.metadata.name for each in found if _counts(each)}
            others = (others | {*self._coming.get(namespace, ())}) - {name}
            if len(others) >= most:
                raise QuotaError(
                    f"namespace {namespace} has {len(others)} sessions that run or wait, and the "
                    f"platform allows {most} ({names.NAMESPACE_LIMIT} in the chart's values); "
                    "end or suspend one first",
                    names.NAMESPACE_LIMIT,
                )
        coming = self._coming.setdefault(namespace, Counter())
        coming[name] += 1
        try:
            yield
        finally:
            coming[name] -= 1
            if not coming[name]:
                del coming[name]
            if not coming:
                del self._coming[namespace]

    async def wait_settled(self, namespace: str, name: str, timeout: float) -> SessionObject | None:
        """See SessionsBackend."""
        session = self.get_session(namespace, name)
        if session is None or _settled(session):
            return session
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._settled.setdefault((namespace, name), set())
        waiting.add(future)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await future
        finally:
            waiting.discard(future)
        return self.get_session(namespace, name)

    def get_session(self, namespace: str, name: str) -> SessionObject | None:
        """See SessionsBackend."""
        found = self._context.sessions.get(namespace, name)
        return self._context.promises.shown(found) if found else None

    def exec_address(self, session: SessionObject) -> tuple[str, int] | None:
        """See SessionsBackend."""
        namespace, uid = session.metadata.namespace, session.metadata.uid
        for pod in self._context.pods.group(("session", namespace, uid)):
            if pod.alive and pod.ip and pod.uid == session.status.pod_uid:
                return pod.ip, names.EXEC_PORT
        return None

    def list_sessions(self, namespace: str, environment: str) -> list[SessionObject]:
        """See SessionsBackend."""
        group = ("environment", namespace, environment) if environment else ("namespace", namespace)
        found = self._context.sessions.group(group)
        shown = map(self._context.promises.shown, found)
        return sorted(shown, key=lambda session: session.metadata.name)

    async def watch_sessions(self, namespace: str, name: str) -> AsyncIterator[SessionChange]:
        """See SessionsBackend."""
        queue: asyncio.Queue[SessionChange | None] = asyncio.Queue(_WATCH_BUFFER)
        # Of what it watches only: nobody else's sessions fill it.
        watchers = self._watchers.setdefault((namespace, name), set())
        watchers.add(queue)
        try:
            for session in self.list_sessions(namespace, ""):
                if name in ("", session.metadata.name):
                    yield SessionChange(session=session)
            yield SessionChange(synced=True)
            while True:
                change = await queue.get()
                if change is None:
                    return
                yield change
        finally:
            watchers.discard(queue)
            if not watchers and self._watchers.get((namespace, name)) is watchers:
                del self._watchers[namespace, name]

    def expires_at(self, session: SessionObject) -> datetime | None:
        """See SessionsBackend."""
        environment = self._context.environments.get(
            session.metadata.namespace, session.spec.environment_name
        )
        return expires_at(session, environment)

    async def set_state(
        self, namespace: str, name: str, state: Literal["Running", "Suspended"]
    ) -> SessionObject | None:
        """See SessionsBackend."""
        session = self.get_session(namespace, name)
        if session is None or session.status.phase.ended or session.spec.state == state:
            return session
        running = session.status.phase is Phase.RUNNING
        if state == "Suspended" and running and not session.status.workspace_claim:
            raise PermanentError(
                conditions.WORKSPACE_NOT_PERSISTENT,
                f"session {name} would lose its work: its Environment had no "
                "workspace.persistent when it started; delete it to end it",
            )
        counted: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if state == "Running":
            counted = self._within_limit(namespace, name, resumed=True)
        with counted:
            return await self._patch_state(session, state)

    async def _patch_state(self, session: SessionObject, state: str) -> SessionObject | None:
        namespace, name = session.key
        operations = [
            {"op": "test", "path": "/metadata/uid", "value": session.metadata.uid},
            {"op": "add", "path": "/spec/state", "value": state},
        ]
        try:
            answer = await self._context.api.json_patch(SESSIONS, namespace, name, operations)
        except NotFoundError:
            return None
        self._context.sessions.put(answer)
        return self.get_session(namespace, name)

    def egress(self, session: SessionObject) -> list[EgressRecord]:
        """See SessionsBackend."""
        return self._context.recent.of(session.status.pod_uid or "")

    async def delete_session(self, namespace: str, name: str) -> bool:
        """See SessionsBackend."""
        try:
            await self._context.api.delete(SESSIONS, namespace, name)
        except NotFoundError:
            return False
        return True


def _counts(session: SessionObject) -> bool:
    """Whether it has a pod or waits for one."""
    phase = session.status.phase
    return not phase.ended and (phase is not Phase.SUSPENDED or session.spec.state == "Running")


def _settled(session: SessionObject) -> bool:
    status = session.status
    if status.phase.ended:
        return True
    if session.spec.state == "Suspended":
        return status.phase is Phase.SUSPENDED or declined(session)
    return status.phase is Phase.RUNNING or status.reason in _HOPELESS


def _taken(new: NewSession, name: str) -> PermanentError:
    if new.name:
        return PermanentError(ALREADY_EXISTS, f"there is a session {name} already", "name")
    return _repeated(name)


def _repeated(name: str) -> PermanentError:
    return PermanentError(
        ALREADY_EXISTS,
        f"another call with this request id made the session {name}",
        "requestId",
    )
