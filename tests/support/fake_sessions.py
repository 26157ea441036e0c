"""A Sessions API that hands out one running exec server."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from cloister_api.sessions.v1 import sessions_pb2 as pb
from cloister_api.sessions.v1 import sessions_pb2_grpc
from support.certificates import TestAuthority
from support.sandbox_server import SESSION_NAME, SESSION_UID, Sandbox

SERVER_NAME = "sessions.cloister.dev"


@dataclass
class FakeSessions(sessions_pb2_grpc.SessionsServicer):
    """Answers from memory; tests read what was asked and choose what fails."""

    sandbox: Sandbox
    authority: TestAuthority = field(default_factory=TestAuthority)
    sessions: dict[str, pb.Session] = field(default_factory=dict)
    created: list[pb.CreateSessionRequest] = field(default_factory=list)
    resumed: list[pb.ResumeRequest] = field(default_factory=list)
    reached: list[pb.EgressDecision] = field(default_factory=list)
    """What every session tried to reach."""
    tokens: list[str] = field(default_factory=list)
    failures: list[tuple[grpc.StatusCode, str, bytes]] = field(default_factory=list)
    """Code, message and details of the next calls."""
    endpoint: str = ""
    lifetime: timedelta = timedelta(hours=1)
    """Of the next certificate."""
    renewals: int = 0
    lost_deletes: int = 0
    """So many deletions succeed without an answer."""
    port: int = 0
    relayed: list[str] = field(default_factory=list)
    """Sessions to which relays were opened."""
    open_relays: int = 0
    relay_port: int = 0
    """Where relays lead; 0 is the exec server."""
    reachable: bool = True
    """Whether relays get through to the exec server."""

    @property
    def client_config(self) -> dict[str, str]:
        """What a cluster tells clients that look for this API."""
        return {
            "ca.crt": self.authority.pem.decode(),
            "sessionsAddress": f"127.0.0.1:{self.port}",
            "sessionsServerName": SERVER_NAME,
            "version": "0.1.0",
        }

    def _enter(self, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata())
        self.tokens.append(str(metadata["authorization"]))
        if self.failures:
            code, message, details = self.failures.pop(0)
            if details:
                context.set_trailing_metadata((("grpc-status-details-bin", details),))
            context.abort(code, message)

    def _find(self, name: str, context: grpc.ServicerContext) -> pb.Session:
        if name not in self.sessions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"session {name} does not exist")
        return self.sessions[name]

    def _credentials(self) -> pb.Credentials:
        pair = self.sandbox.authority.issue(uri=f"session:{SESSION_UID}")
        credentials = pb.Credentials(
            certificate_pem=pair.certificate,
            private_key_pem=pair.private_key,
            ca_pem=self.sandbox.authority.pem,
        )
        credentials.expires_at.FromDatetime(datetime.now(UTC) + self.lifetime)
        self.lifetime = timedelta(hours=1)
        return credentials

    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(context)
        self.created.append(request)
        session = pb.Session(
            namespace=request.namespace,
            name=request.name or f"s{len(self.created)}",
            uid=SESSION_UID,
            environment=request.environment,
            phase=pb.Session.PHASE_RUNNING,
            pod_name="sandbox-0",
            endpoint=self.endpoint,
            server_name=SESSION_NAME,
        )
        session.created_at.GetCurrentTime()
        self.sessions[session.name] = session
        return pb.CreateSessionResponse(session=session, credentials=self._credentials())

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(context)
        return self._find(request.name, context)

    def List(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(context)
        found = self.sessions.values()
        return pb.ListSessionsResponse(
            sessions=[each for each in found if request.environment in ("", each.environment)]
        )

    def Renew(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(context)
        self._find(request.name, context)
        self.renewals += 1
        return self._credentials()

    def GetEgress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(context)
        self._find(request.name, context)
        return pb.GetEgressResponse(decisions=self.reached)

    def Delete(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(context)
        self._find(request.name, context)
        del self.sessions[request.name]
        if self.lost_deletes:
            self.lost_deletes -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return pb.DeleteSessionResponse()

    def Watch(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in this fake")

    def Relay(self, requests: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        first = next(requests)
        self._enter(context)
        self._find(first.name, context)
        self.relayed.append(f"{first.namespace}/{first.name}")
        if not self.reachable:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the session's sandbox does not answer")
        with socket.create_connection(("127.0.0.1", self.relay_port or self.sandbox.port)) as far:
            context.add_callback(lambda: _end(far))
            up = threading.Thread(target=_send, args=(requests, far))
            up.start()
            with self._counting():
                yield pb.RelayResponse()
                while data := _received(far):
                    yield pb.RelayResponse(data=data)
            context.cancel()
            up.join()

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        self.open_relays += 1
        try:
            yield
        finally:
            self.open_relays -= 1

    def Suspend(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(context)
        found = self._find(request.name, context)
        found.phase = pb.Session.PHASE_SUSPENDED
        found.reason, found.message = "Suspended", "resume it to go on"
        found.pod_name = found.endpoint = ""
        return found

    def Resume(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._enter(context)
        found = self._find(request.name, context)
        self.resumed.append(request)
        if found.phase == pb.Session.PHASE_SUSPENDED:
            found.phase, found.pod_name, found.endpoint = (
                pb.Session.PHASE_RUNNING,
                "sandbox-0",
                self.endpoint,
            )
            found.restarts += 1
        return pb.CreateSessionResponse(session=found, credentials=self._credentials())


def _send(requests: Any, far: socket.socket) -> None:
    with contextlib.suppress(Exception):
        for each in requests:
            far.sendall(each.data)
    _end(far)


def _received(far: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return far.recv(65_536)
    return b""


def _end(far: socket.socket) -> None:
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def fake_sessions(sandbox: Sandbox) -> Iterator[FakeSessions]:
    """Serve on a loopback port over TLS."""
    sessions = FakeSessions(sandbox, endpoint=f"127.0.0.1:{sandbox.port}")
    pair = sessions.authority.issue(dns=SERVER_NAME)
    server = grpc.server(ThreadPoolExecutor(32))
    sessions_pb2_grpc.add_SessionsServicer_to_server(sessions, server)
    credentials = grpc.ssl_server_credentials([(pair.private_key, pair.certificate)])
    sessions.port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield sessions
    finally:
        server.stop(None).wait()
