"""AsyncClient: finds the cluster, makes sessions."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from cloister_api.sessions.v1 import sessions_pb2 as pb

from ._connection import Connection
from ._errors import CallError, SessionEndedError, call_error, suspended
from ._models import Credentials, EgressDecision, EnvironmentInfo, File, SessionInfo
from ._numbers import UINT32, duration, whole
from ._session import AsyncSession
from ._sessions_api import SessionsApi

if TYPE_CHECKING:
    from ._kube import Kube

DEFAULT_NAMESPACE = "cloister-sandboxes"
DEFAULT_SYSTEM_NAMESPACE = "cloister-system"
DEFAULT_WAIT = 60.0


class AsyncClient:
    """A client of one cluster, for asyncio programs. It connects at the first call.

    namespace: of the sandboxes; None is $CLOISTER_SANDBOX_NAMESPACE or `cloister-sandboxes`.
    kubeconfig: path of a kubeconfig; None is $KUBECONFIG, the service account inside a pod, or
    ~/.kube/config, in this order. context: name of a context in it; None is the current one.
    system_namespace: where Cloister is installed; None is $CLOISTER_SYSTEM_NAMESPACE or
    `cloister-system`. direct: whether pods are reachable from here; None says yes inside the
    cluster, and forwards ports through the Kubernetes API outside.

    All methods raise ConfigurationError without a usable cluster, KubernetesError when the
    Kubernetes API refuses, and CallError when the Sessions API does.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        kubeconfig: str | None = None,
        context: str | None = None,
        system_namespace: str | None = None,
        direct: bool | None = None,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._system_namespace = (
            system_namespace
            or os.environ.get("CLOISTER_SYSTEM_NAMESPACE")
            or DEFAULT_SYSTEM_NAMESPACE
        )
        self.namespace = (
            namespace or os.environ.get("CLOISTER_SANDBOX_NAMESPACE") or DEFAULT_NAMESPACE
        )
        """The namespace of the sandboxes."""
        self._direct = direct
        self._lock = asyncio.Lock()
        self._kube: Kube | None = None
        self._api: SessionsApi | None = None
        self._sessions: set[AsyncSession] = set()

    async def create_session(
        self,
        environment: str,
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        files: Sequence[File] = (),
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
        wait: float = DEFAULT_WAIT,
        request_id: str | None = None,
    ) -> AsyncSession:
        """Claim a sandbox of an Environment.

        name: of the session; None lets the operator choose. env: variables for its commands, added
        to the Environment's. files: written before it is handed over. idle_timeout, max_lifetime:
        seconds; they may only shorten what the Environment allows. wait: seconds to wait for a
        sandbox when none is warm. request_id: the same id with the same arguments answers with the
        same session; None chooses one.
        """
        request = pb.CreateSessionRequest(
            namespace=self.namespace,
            environment=environment,
            name=name or "",
            request_id=request_id or uuid.uuid4().hex,
            env=dict(env or {}),
            files=[
                pb.File(
                    path=each.path,
                    mode=whole("mode of files", each.mode, most=UINT32),
                    content=each.content,
                )
                for each in files
            ],
            wait=duration("wait", wait),
        )
        if idle_timeout is not None:
            request.idle_timeout.CopyFrom(duration("idle_timeout", idle_timeout))
        if max_lifetime is not None:
            request.max_lifetime.CopyFrom(duration("max_lifetime", max_lifetime))
        _, api = await self._connected()
        made: pb.CreateSessionResponse = await api.create(request, wait)
        return await self._session(
            SessionInfo.from_proto(made.session), made.credentials, owned=True
        )

    async def get_session(self, name: str) -> AsyncSession:
        """Attach to a session that exists; leaving it does not end it.

        Raises NotFoundError, SessionEndedError, UnavailableError while it has no sandbox yet, and
        FailedPreconditionError when it is suspended: see `resume_session`.
        """
        _, api = await self._connected()
        info = SessionInfo.from_proto(await api.get(self.namespace, name))
        if info.ended:
            raise SessionEndedError(info.name, info.phase, info.reason, info.message)
        if info.suspended:
            raise suspended(info.name, info.message)
        if not info.pod_name:
            raise _not_running(info)
        credentials = await api.renew(self.namespace, name)
        return await self._session(info, credentials, owned=False)

    async def list_sessions(self, environment: str | None = None) -> list[SessionInfo]:
        """The namespace's sessions, oldest first; environment: only this one's."""
        _, api = await self._connected()
        found = await api.list(self.namespace, environment or "")
        return [SessionInfo.from_proto(each) for each in found.sessions]

    async def session_egress(self, name: str) -> list[EgressDecision]:
        """What a session tried to reach through the egress gateways, allowed and denied; the newest
        last. Empty where its Environment allows no hosts.
        """
        _, api = await self._connected()
        answer = await api.egress(self.namespace, name)
        return [EgressDecision.from_proto(each) for each in answer.decisions]

    async def suspend_session(self, name: str) -> SessionInfo:
        """Delete a session's sandbox and keep its workspace, until it is resumed or ends.

        Calls under way get some seconds to finish. Raises NotFoundError, and
        FailedPreconditionError where its Environment's workspace does not persist.
        """
        _, api = await self._connected()
        return SessionInfo.from_proto(await api.suspend(self.namespace, name))

    async def resume_session(self, name: str, *, wait: float = DEFAULT_WAIT) -> AsyncSession:
        """Give a suspended session a new sandbox on its workspace; leaving it does not end it.

        Its shells, its programs and its files elsewhere are gone. wait: seconds to wait for the
        sandbox. A session that runs is attached to as it is. Raises NotFoundError, and
        FailedPreconditionError when it has ended.
        """
        _, api = await self._connected()
        request = pb.ResumeRequest(namespace=self.namespace, name=name, wait=duration("wait", wait))
        made: pb.CreateSessionResponse = await api.resume(request, wait)
        return await self._session(
            SessionInfo.from_proto(made.session), made.credentials, owned=False
        )

    async def delete_session(self, name: str) -> None:
        """End a session; raises NotFoundError."""
        _, api = await self._connected()
        await api.delete(self.namespace, name)

    async def session_info(self, name: str) -> SessionInfo:
        """Read a session, also one that has ended; raises NotFoundError."""
        _, api = await self._connected()
        return SessionInfo.from_proto(await api.get(self.namespace, name))

    async def list_environments(self) -> list[EnvironmentInfo]:
        """The namespace's Environments, by name."""
        kube, _ = await self._connected()
        return await kube.environments(self.namespace)

    async def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[bytes]:
        """What the exec server of a session has logged.

        follow: go on until the pod ends. tail: only this many last lines. Raises NotFoundError.
        """
        if tail is not None:
            whole("tail", tail)
        kube, api = await self._connected()
        info = SessionInfo.from_proto(await api.get(self.namespace, name))
        if not info.pod_name:
            raise _not_running(info)
        async for chunk in kube.logs(self.namespace, info.pod_name, follow=follow, tail=tail):
            yield chunk

    def reach(self, session: AsyncSession) -> AbstractAsyncContextManager[str]:
        """The same as session.reach()."""
        return session.reach()

    async def close(self) -> None:
        """Close all connections; sessions go on, and get_session finds them again."""
        for each in list(self._sessions):
            await each.close(delete=False)
        kube, api = self._kube, self._api
        self._kube = self._api = None
        if api is not None:
            await api.close()
        if kube is not None:
            await kube.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _connected(self) -> "tuple[Kube, SessionsApi]":
        async with self._lock:
            if self._kube is None or self._api is None:
                # Not before: it takes longer than the rest of the library.
                from ._kube import Kube

                self._kube = await Kube.load(self._kubeconfig, self._context)
                self._api = SessionsApi(
                    self._kube,
                    system_namespace=self._system_namespace,
                    namespace=self.namespace,
                    direct=self._is_direct(self._kube),
                )
            return self._kube, self._api

    def _is_direct(self, kube: "Kube") -> bool:
        return kube.in_cluster if self._direct is None else self._direct

    async def _session(
        self, info: SessionInfo, credentials: pb.Credentials, *, owned: bool
    ) -> AsyncSession:
        kube, api = await self._connected()
        connection = Connection(
            api,
            info,
            Credentials.from_proto(credentials),
            direct=self._is_direct(kube),
        )
        session = AsyncSession(connection, api, owned=owned, on_close=self._sessions.discard)
        self._sessions.add(session)
        return session


def _not_running(info: SessionInfo) -> CallError:
    why = f": {info.message}" if info.message else ""
    return call_error(
        grpc.StatusCode.UNAVAILABLE, f"session {info.name} is {info.phase.lower()}{why}"
    )
