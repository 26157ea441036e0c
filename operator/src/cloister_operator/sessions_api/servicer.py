"""cloister.sessions.v1.Sessions: asks the backend and answers. The guard has let the call in."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Any, Final

from cloister_api.sessions.v1 import sessions_pb2, sessions_pb2_grpc

from .. import names
from ..api import conditions
from ..api.backend import SessionsBackend
from ..api.session import Phase, SessionObject
from ..identity import Authority
from . import relay, translate
from .auth import CALLER
from .status import (
    QUOTA,
    QUOTA_SECONDS,
    RETRY_SECONDS,
    Busy,
    NotFound,
    QuotaReached,
    Unfinished,
    WrongState,
    upper_snake,
)

CLIENT_LIFETIME: Final = timedelta(hours=1)
"""A client certificate's; at most the session's rest."""
_ANSWER_MARGIN = 0.25
"""Seconds before the caller's own deadline, so that our sentence still reaches it."""
_SUSPEND_SECONDS: Final = 30.0
"""Longer than the pod's calls get to finish."""
_MIRROR_SECONDS: Final = 1.0
"""By which the mirror of a process that does not lead may be behind."""


class SessionsServicer(sessions_pb2_grpc.SessionsServicer):
    """The methods; all raise status.CallError or an OperatorError, which the guard translates."""

    def __init__(
        self, backend: SessionsBackend, authority: Authority, clock: Callable[[], datetime]
    ) -> None:
        self._backend = backend
        self._authority = authority
        self._clock = clock

    async def Create(  # noqa: N802
        self, request: sessions_pb2.CreateSessionRequest, context: Any
    ) -> sessions_pb2.CreateSessionResponse:
        new = translate.new_session(request, CALLER.get().username)
        patience = _Patience(translate.wait_of(request).total_seconds(), context)
        made = await self._backend.create_session(new)
        return await self._when_running(made, patience)

    async def Get(  # noqa: N802
        self,
        request: sessions_pb2.GetSessionRequest,
        context: Any,  # noqa: ARG002
    ) -> sessions_pb2.Session:
        return self._shown(self._found(request.namespace, request.name))

    async def List(  # noqa: N802
        self,
        request: sessions_pb2.ListSessionsRequest,
        context: Any,  # noqa: ARG002
    ) -> sessions_pb2.ListSessionsResponse:
        translate.check_environment_filter(request.environment)
        found = self._backend.list_sessions(request.namespace, request.environment)
        found = sorted(
            found, key=lambda each: (each.metadata.creation_timestamp or "", each.metadata.name)
        )
        return sessions_pb2.ListSessionsResponse(sessions=[self._shown(each) for each in found])

    async def Watch(  # noqa: N802
        self,
        request: sessions_pb2.WatchSessionsRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[sessions_pb2.SessionEvent]:
        async for change in self._backend.watch_sessions(request.namespace, request.name):
            expires = self._backend.expires_at(change.session) if change.session else None
            yield translate.event(change, expires)

    async def Renew(  # noqa: N802
        self,
        request: sessions_pb2.RenewRequest,
        context: Any,  # noqa: ARG002
    ) -> sessions_pb2.Credentials:
        found = self._found(request.namespace, request.name)
        if found.status.phase is not Phase.RUNNING:
            raise self._not_running(found, time_is_over=False)
        return self._credentials(found)

    async def Suspend(  # noqa: N802
        self, request: sessions_pb2.SuspendRequest, context: Any
    ) -> sessions_pb2.Session:
        patience = _Patience(_SUSPEND_SECONDS, context)
        namespace, name = request.namespace, request.name
        if await self._backend.set_state(namespace, name, "Suspended") is None:
            raise _no_such(namespace, name)
        settled = await self._backend.wait_settled(namespace, name, patience.left)
        if settled is None:
            raise NotFound("DELETED", "the session was deleted meanwhile", session=name)
        if settled.status.phase.ended:
            raise self._not_running(settled, time_is_over=False)
        if settled.status.phase is not Phase.SUSPENDED:
            raise self._not_suspended(settled)
        return self._shown(settled)

    async def Resume(  # noqa: N802
        self, request: sessions_pb2.ResumeRequest, context: Any
    ) -> sessions_pb2.CreateSessionResponse:
        patience = _Patience(translate.wait_of(request).total_seconds(), context)
        found = await self._backend.set_state(request.namespace, request.name, "Running")
        if found is None:
            raise _no_such(request.namespace, request.name)
        return await self._when_running(found, patience)

    async def GetEgress(  # noqa: N802
        self,
        request: sessions_pb2.GetEgressRequest,
        context: Any,  # noqa: ARG002
    ) -> sessions_pb2.GetEgressResponse:
        found = self._found(request.namespace, request.name)
        return translate.egress(self._backend.egress(found))

    async def Delete(  # noqa: N802
        self,
        request: sessions_pb2.DeleteSessionRequest,
        context: Any,  # noqa: ARG002
    ) -> sessions_pb2.DeleteSessionResponse:
        if not await self._backend.delete_session(request.namespace, request.name):
            raise _no_such(request.namespace, request.name)
        return sessions_pb2.DeleteSessionResponse()

    async def Relay(  # noqa: N802
        self,
        request_iterator: Any,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[sessions_pb2.RelayResponse]:
        first = await anext(request_iterator)
        address = await self._exec_address(first.namespace, first.name)
        carried = relay.carry(first.data, request_iterator, *await relay.connect(*address))
        async with contextlib.aclosing(carried) as items:
            async for each in items:
                yield each

    async def _exec_address(self, namespace: str, name: str) -> tuple[str, int]:
        patience = time.monotonic() + _MIRROR_SECONDS
        while True:
            # Whichever process is asked: it may not have seen yet what the leader has just made.
            found = self._backend.get_session(namespace, name)
            address = self._backend.exec_address(found) if found else None
            if found and address and found.status.phase is Phase.RUNNING:
                return address
            if time.monotonic() > patience:
                found = self._found(namespace, name)
                if found.status.phase is Phase.RUNNING:
                    raise relay.unreachable()
                raise self._not_running(found, time_is_over=False)
            await asyncio.sleep(_MIRROR_SECONDS / 20)

    async def _when_running(
        self, session: SessionObject, patience: "_Patience"
    ) -> sessions_pb2.CreateSessionResponse:
        namespace, name = session.key
        settled = await self._backend.wait_settled(namespace, name, patience.left)
        if settled is None:
            raise NotFound("DELETED", "the session was deleted while it started", session=name)
        if settled.status.phase is not Phase.RUNNING:
            raise self._not_running(settled, time_is_over=patience.left <= 0)
        return sessions_pb2.CreateSessionResponse(
            session=self._shown(settled), credentials=self._credentials(settled)
        )

    def _found(self, namespace: str, name: str) -> SessionObject:
        found = self._backend.get_session(namespace, name)
        if found is None:
            raise _no_such(namespace, name)
        return found

    def _shown(self, found: SessionObject) -> sessions_pb2.Session:
        return translate.session(found, self._backend.expires_at(found))

    def _credentials(self, found: SessionObject) -> sessions_pb2.Credentials:
        now = self._clock()
        lifetime = CLIENT_LIFETIME
        expires = self._backend.expires_at(found)
        if expires is not None:
            lifetime = min(lifetime, expires - now)
        if lifetime < timedelta(seconds=1):
            raise WrongState(
                "MAX_LIFETIME", "the session has reached its longest lifetime and is ending"
            )
        identity = self._authority.session_client(found.metadata.uid, now, lifetime)
        return translate.credentials(identity)

    @staticmethod
    def _not_suspended(found: SessionObject) -> Exception:
        name = found.metadata.name
        about = {"session": name, "namespace": found.metadata.namespace}
        for each in found.status.conditions:
            if each.type == conditions.SUSPENDED and each.reason != conditions.RESUMED:
                return WrongState(
                    upper_snake(each.reason), f"session {name}: {each.message}", **about
                )
        return Unfinished("SUSPENDING", f"session {name} is being suspended", **about)

    @staticmethod
    def _not_running(found: SessionObject, *, time_is_over: bool) -> Exception:
        name, phase = found.metadata.name, found.status.phase
        reason, message = translate.explanation(found)
        word = upper_snake(reason) or "NOT_RUNNING"
        because = f": {message}" if message else ""
        about = {"session": name, "namespace": found.metadata.namespace, "phase": str(phase)}
        if found.status.queue_position:
            about["queue_position"] = str(found.status.queue_position)
        # A suspended one that is to run has not been looked at yet.
        coming = phase is Phase.PENDING or (found.spec.state == "Running" and not phase.ended)
        if coming and (quota := _quota(reason, message)):
            return QuotaReached(
                f"session {name} has to wait{because}; it stays, and may run later",
                quota,
                QUOTA_SECONDS,
                **about,
            )
        if coming and time_is_over:
            return Unfinished(
                word,
                f"session {name} is not running yet{because}; it stays, and may run later",
                **about,
            )
        if phase is Phase.PENDING and reason == conditions.QUEUED:
            return Busy(word, f"session {name} has to wait{because}", RETRY_SECONDS, **about)
        return WrongState(word, f"session {name} is {phase}{because}", **about)


class _Patience:
    """How long a call may wait: as asked, and so that the answer still reaches its caller."""

    def __init__(self, seconds: float, context: Any) -> None:
        remaining = context.time_remaining()
        if remaining is not None:
            seconds = min(seconds, remaining - _ANSWER_MARGIN)
        self._until = time.monotonic() + max(0.0, seconds)

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._until - time.monotonic())


def _quota(reason: str, message: str) -> str | None:
    """The quota that a session waits for, if it waits for one."""
    if reason == conditions.NAMESPACE_FULL:
        return names.NAMESPACE_LIMIT
    found = QUOTA.search(message) if reason == conditions.QUOTA_EXCEEDED else None
    return found[1] if found else None


def _no_such(namespace: str, name: str) -> NotFound:
    return NotFound("SESSION_NOT_FOUND", f"there is no session {name} in namespace {namespace}")
