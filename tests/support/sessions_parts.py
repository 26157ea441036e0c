"""Parts for tests of the Sessions API: a backend, a reviewer, a client, what a failure says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from cloister_api.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from cloister_operator.api.backend import Caller, EgressRecord, NewSession, SessionChange
from cloister_operator.api.session import SessionObject
from cloister_operator.errors import TransientError
from cloister_operator.identity import Authority
from cloister_operator.sessions_api.auth import Auth
from cloister_operator.sessions_api.guard import Guard
from cloister_operator.sessions_api.server import SessionsServer

ALICE, BOB, CAROL = "token-of-alice", "token-of-bob", "token-of-carol"
NS = "team-a"
UID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def made(name: str = "s1", phase: str = "Running", **status: Any) -> SessionObject:
    running = {
        "podName": "pod-1",
        "endpoint": "10.0.0.9:7443",
        "serverName": f"session-{UID}.sandbox.cloister.dev",
        "recipeHash": "0123456789",
    }
    return SessionObject.parse(
        {
            "metadata": {
                "name": name,
                "namespace": NS,
                "uid": UID,
                "creationTimestamp": "2026-05-01T12:00:00Z",
            },
            "spec": {"environmentName": "data"},
            "status": {"phase": phase, **(running if phase == "Running" else {}), **status},
        }
    )


def not_ready(reason: str, message: str) -> list[dict[str, str]]:
    return [
        {
            "type": "Ready",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-05-01T12:00:00Z",
        }
    ]


class FakeBackend:
    """One namespace's sessions, and the answers that a test puts in."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionObject] = {}
        self.asked: list[NewSession] = []
        self.states: list[tuple[str, str]] = []
        self.reached: dict[str, list[EgressRecord]] = {}
        self.settles: SessionObject | None = made()
        self.never_settles = False
        self.raises: Exception | None = None
        self.expires: datetime | None = datetime.now(UTC) + timedelta(hours=5)
        self.changes: asyncio.Queue[SessionChange | None] = asyncio.Queue()
        self.watchers = 0
        self.address: tuple[str, int] | None = None
        self.entered: asyncio.Queue[str] = asyncio.Queue()
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self.hold: asyncio.Event | None = None

    async def create_session(self, new: NewSession) -> SessionObject:
        self.asked.append(new)
        self.entered.put_nowait("Create")
        try:
            if self.hold:
                await self.hold.wait()
        finally:
            self.left.put_nowait("Create")
        if self.raises:
            raise self.raises
        return made(new.name or "s1", phase="Pending")

    async def wait_settled(self, namespace: str, name: str, timeout: float) -> SessionObject | None:
        if self.never_settles:
            await asyncio.sleep(timeout)
        return self.settles

    def get_session(self, namespace: str, name: str) -> SessionObject | None:
        if self.raises:
            raise self.raises
        return self.sessions.get(name) if namespace == NS else None

    def exec_address(self, session: SessionObject) -> tuple[str, int] | None:
        return self.address

    def list_sessions(self, namespace: str, environment: str) -> list[SessionObject]:
        return [
            each
            for each in self.sessions.values()
            if not environment or each.spec.environment_name == environment
        ]

    async def watch_sessions(self, namespace: str, name: str) -> AsyncIterator[SessionChange]:
        self.watchers += 1
        try:
            while (change := await self.changes.get()) is not None:
                yield change
        finally:
            self.watchers -= 1
            self.left.put_nowait("Watch")

    def expires_at(self, session: SessionObject) -> datetime | None:
        return self.expires

    async def set_state(self, namespace: str, name: str, state: str) -> SessionObject | None:
        if self.raises:
            raise self.raises
        self.states.append((name, state))
        return self.get_session(namespace, name)

    def egress(self, session: SessionObject) -> list[EgressRecord]:
        return self.reached.get(session.metadata.name, [])

    async def delete_session(self, namespace: str, name: str) -> bool:
        return self.sessions.pop(name, None) is not None


class FakeReviewer:
    """Knows three tokens; Alice and Carol may do everything until a test takes a right away."""

    def __init__(self) -> None:
        self.missing: set[tuple[str, str]] = set()
        self.valid = {ALICE: "alice", BOB: "bob", CAROL: "carol"}
        self.allowed = {"alice", "carol"}
        self.token_reviews: list[str] = []
        self.access_reviews: list[tuple[str, str, str, str, str, str]] = []
        self.down = False
        self.slow = asyncio.Event()
        """Unset, it holds the reviews of tokens back that are not valid."""
        self.slow.set()
        self.slow_access = asyncio.Event()
        """Unset, it holds the reviews of rights back."""
        self.slow_access.set()

    async def review_token(self, token: str) -> Caller | None:
        self.token_reviews.append(token)
        await asyncio.sleep(0)
        if token not in self.valid:
            await self.slow.wait()
        if self.down:
            raise TransientError("connection refused")
        name = self.valid.get(token)
        return Caller(name, groups=("system:authenticated",)) if name else None

    async def review_access(
        self, caller: Caller, verb: str, resource: str, subresource: str, namespace: str, name: str
    ) -> bool:
        asked = (caller.username, verb, resource, subresource, namespace, name)
        self.access_reviews.append(asked)
        await self.slow_access.wait()
        if self.down:
            raise TransientError("connection refused")
        return caller.username in self.allowed and (verb, subresource) not in self.missing


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Api:
    """A running server and a client on it."""

    backend: FakeBackend
    reviewer: FakeReviewer
    clock: Clock
    authority: Authority
    port: int
    stub: Any

    async def call(self, method: str, request: Any, token: str | None = ALICE, **given: Any) -> Any:
        """A unary call with a token."""
        metadata = [("authorization", f"Bearer {token}")] if token is not None else []
        return await getattr(self.stub, method)(request, metadata=metadata, timeout=10, **given)


@contextlib.asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Api]:
    """A server whose guard has these limits."""
    backend, reviewer, clock = FakeBackend(), FakeReviewer(), Clock()
    authority = Authority.create(datetime.now(UTC))
    guard = Guard(Auth(reviewer, clock), recheck_seconds=0.05, **limits)
    server = SessionsServer(backend, reviewer, authority, guard=guard)
    port = await server.start("127.0.0.1:0")
    async with channel(port, authority) as opened:
        stub = sessions_pb2_grpc.SessionsStub(opened)
        yield Api(backend, reviewer, clock, authority, port, stub)
    await server.stop(0)


def channel(port: int, authority: Authority) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(
        f"127.0.0.1:{port}",
        grpc.ssl_channel_credentials(authority.ca_pem),
        options=[
            ("grpc.ssl_target_name_override", "sessions.cloister.dev"),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


@dataclass
class Failure:
    """A failed call, its details unpacked."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]
    retry_seconds: float | None


def unpack(error: grpc.aio.AioRpcError) -> Failure:
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(raw)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    has_retry = False
    for each in status.details:
        each.Unpack(info)
        each.Unpack(bad)
        has_retry |= each.Unpack(retry)
    assert info.domain == "sessions.cloister.dev"
    return Failure(
        error.code(),
        error.details() or "",
        info.reason,
        dict(info.metadata),
        {each.field: each.description for each in bad.field_violations},
        retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
    )


async def failure(awaited: Any) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaited
    return unpack(caught.value)


def create(**given: Any) -> sessions_pb2.CreateSessionRequest:
    return sessions_pb2.CreateSessionRequest(**{"namespace": NS, "environment": "data", **given})


def get(name: str = "s1", namespace: str = NS) -> sessions_pb2.GetSessionRequest:
    return sessions_pb2.GetSessionRequest(namespace=namespace, name=name)


EVERY_CALL: list[tuple[str, Any]] = [
    ("Create", create()),
    ("Get", get()),
    ("List", sessions_pb2.ListSessionsRequest(namespace=NS)),
    ("Renew", sessions_pb2.RenewRequest(namespace=NS, name="s1")),
    ("Suspend", sessions_pb2.SuspendRequest(namespace=NS, name="s1")),
    ("Resume", sessions_pb2.ResumeRequest(namespace=NS, name="s1")),
    ("GetEgress", sessions_pb2.GetEgressRequest(namespace=NS, name="s1")),
    ("Delete", sessions_pb2.DeleteSessionRequest(namespace=NS, name="s1")),
]
"""By method, a call that is in order."""
