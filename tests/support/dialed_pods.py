"""Exec servers that an operator dials: who signs for them, and impostors."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_operator.identity import Authority, Identity
from cloister_operator.sandboxes import (
    ClaimPayload,
    PodAddress,
)
from support.certificates import Pair
from support.sandbox_server import POD_UID, free_port

HOUR = timedelta(hours=1)
SESSION = "11111111-2222-3333-4444-555555555555"


class Signer:
    """The product's authority where the exec server's helper expects the tests' own."""

    def __init__(self) -> None:
        self.authority = Authority.create(datetime.now(UTC))
        self.pem = self.authority.ca_pem

    def issue(self, *, dns: str = "", uri: str = "") -> Pair:
        """A certificate of this CA."""
        now = datetime.now(UTC)
        if dns:
            made = self.authority.pod_server(dns.removeprefix("pod-").split(".")[0], now)
        else:
            made = self.authority.operator_client(now)
        return Pair(made.certificate_pem, made.private_key_pem)


def address(port: int, uid: str = POD_UID) -> PodAddress:
    """A pod that listens here."""
    return PodAddress(name="pod-1", uid=uid, ip="127.0.0.1", port=port)


def soon(seconds: float = 10) -> float:
    """A deadline, by the monotonic clock."""
    return time.monotonic() + seconds


def payload(authority: Authority, session: str = SESSION, **given: Any) -> ClaimPayload:
    """What a session brings along."""
    identity = authority.session_server(session, datetime.now(UTC), HOUR)
    return ClaimPayload(session, "s1", identity, **given)


class FakeRuntime(exec_pb2_grpc.RuntimeServicer):
    """Answers what a test puts in; a warm pod by default."""

    def __init__(self) -> None:
        self.info = exec_pb2.RuntimeInfo(state=exec_pb2.RuntimeInfo.STATE_WARM, boot_id="b")
        self.probe = exec_pb2.ProbeResponse()
        self.packages = exec_pb2.PackageSourcesResponse()
        self.activity = exec_pb2.ActivityResponse()
        self.fault = ""
        self.fault_code = grpc.StatusCode.INTERNAL
        self.peers: list[str] = []
        self.block: asyncio.Event | None = None
        self.called = asyncio.Event()

    async def Info(self, request: Any, context: Any) -> exec_pb2.RuntimeInfo:  # noqa: N802
        self.peers.append(context.peer())
        self.called.set()
        if self.block:
            await self.block.wait()
        return self.info

    async def Claim(self, request: Any, context: Any) -> exec_pb2.ClaimResponse:  # noqa: N802
        self.called.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def Probe(self, request: Any, context: Any) -> exec_pb2.ProbeResponse:  # noqa: N802
        return self.probe

    async def PackageSources(  # noqa: N802
        self, request: Any, context: Any
    ) -> exec_pb2.PackageSourcesResponse:
        return self.packages

    async def Activity(self, request: Any, context: Any) -> exec_pb2.ActivityResponse:  # noqa: N802
        if self.fault:
            await context.abort(self.fault_code, self.fault)
        return self.activity

    async def Prepare(self, request: Any, context: Any) -> exec_pb2.PrepareResponse:  # noqa: N802
        raise AssertionError

    async def Trust(self, request: Any, context: Any) -> exec_pb2.TrustResponse:  # noqa: N802
        raise AssertionError

    async def Drain(self, request: Any, context: Any) -> exec_pb2.DrainResponse:  # noqa: N802
        raise AssertionError


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Of a server that wants to know its callers."""
    return grpc.ssl_server_credentials(
        [(identity.private_key_pem, identity.certificate_pem)],
        identity.ca_pem,
        require_client_auth=True,
    )


@asynccontextmanager
async def fake(
    authority: Authority, runtime: FakeRuntime, uid: str = POD_UID, start: bool = True
) -> AsyncIterator[tuple[PodAddress, Callable[[], Awaitable[None]]]]:
    """A server under a pod's certificate, unless `uid` is a session's name."""
    now = datetime.now(UTC)
    if uid == SESSION:
        identity = authority.session_server(uid, now, HOUR)
    else:
        identity = authority.pod_server(uid, now)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    exec_pb2_grpc.add_RuntimeServicer_to_server(runtime, server)
    if start:
        port = server.add_secure_port("127.0.0.1:0", server_credentials(identity))
        await server.start()
    else:
        port = free_port()

    async def begin() -> None:
        server.add_secure_port(f"127.0.0.1:{port}", server_credentials(identity))
        await server.start()

    try:
        yield address(port), begin
    finally:
        await server.stop(None)
