"""Far ends that vanish without a word, as with their node: nothing waits for them for ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister_api.egress.v1 import egress_pb2
from cloister_api.sessions.v1 import sessions_pb2 as pb
from cloister_api.sessions.v1 import sessions_pb2_grpc
from cloister_operator.api.gateway import gateway_view
from cloister_operator.errors import TransientError
from cloister_operator.identity import Authority
from cloister_operator.sandboxes import links
from cloister_operator.sandboxes.gateways import EgressGateways
from cloister_operator.sessions_api import forwarding
from cloister_operator.sessions_api.forwarding import Forwarder
from cloister_operator.sessions_api.server import SessionsServer
from cloister_operator.sessions_api.status import Unavailable
from support.certificates import Pair
from support.eventually import until
from support.fake_gateway import FakeGateway
from support.gateway_site import gateway_body
from support.sandbox_server import free_port
from support.sessions_parts import ALICE, NS, FakeBackend, FakeReviewer, channel, get, made


@contextlib.asynccontextmanager
async def way(port: int, passes: asyncio.Event) -> AsyncIterator[int]:
    """A port that leads to another for as long as `passes` is set; then nothing gets through, and
    neither end is told.
    """

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await passes.wait()
                writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    passes.set()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        passes.set()
        server.close()


async def test_a_watch_ends_whose_caller_vanished() -> None:
    """Its place would be nobody's for hours."""
    authority, backend = Authority.create(datetime.now(UTC)), FakeBackend()
    server = SessionsServer(backend, FakeReviewer(), authority, silent_seconds=0.3)
    port = await server.start("127.0.0.1:0")
    passes = asyncio.Event()
    async with way(port, passes) as through, channel(through, authority) as far:
        metadata = [("authorization", f"Bearer {ALICE}")]
        stub = sessions_pb2_grpc.SessionsStub(far)
        watch = stub.Watch(pb.WatchSessionsRequest(namespace=NS), metadata=metadata)
        await watch.initial_metadata()
        await until(lambda: backend.watchers == 1)
        passes.clear()
        await until(lambda: backend.watchers == 0)
        watch.cancel()
    await server.stop(0)


async def test_a_leader_that_vanished_is_noticed_by_who_forwards_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also by a call that its caller lets wait for ever."""
    monkeypatch.setattr(forwarding, "_OPTIONS", tuple(map(sooner, forwarding._OPTIONS)))
    authority, backend, passes = Authority.create(datetime.now(UTC)), FakeBackend(), asyncio.Event()
    backend.sessions["s1"] = made()
    server = SessionsServer(backend, FakeReviewer(), authority)
    port = await server.start("127.0.0.1:0")
    async with way(port, passes) as through:
        forwarder = Forwarder(Elsewhere(f"127.0.0.1:{through}"), lambda: authority.ca_pem)
        suspend = pb.SuspendRequest(namespace=NS, name="s1")
        assert (await forwarder.call("Get", get(), Waiting())).name == "s1"
        passes.clear()
        call = asyncio.create_task(forwarder.call("Suspend", suspend, Waiting()))
        await until(call.done)
        lost = call.exception()
        assert isinstance(lost, Unavailable)
        assert lost.reason == "LEADER_LOST"
        passes.set()
        await forwarder.close()
    await server.stop(0)


@dataclass
class Elsewhere:
    """Another process leads."""

    address: str

    def leads(self) -> bool:
        return False

    def leader(self) -> str:
        return self.address


class Waiting:
    """A call without a deadline."""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {ALICE}")]

    def time_remaining(self) -> None:
        return None


async def test_an_egress_gateway_that_vanished_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it decides is asked for without an end."""
    monkeypatch.setattr(links, "_OPTIONS", tuple(map(sooner, links._OPTIONS)))
    authority, gateway, passes = Authority.create(datetime.now(UTC)), FakeGateway(), asyncio.Event()
    identity = authority.egress_gateway_server(datetime.now(UTC))
    pair, port = Pair(identity.certificate_pem, identity.private_key_pem), free_port()
    await gateway.start(pair, authority.ca_pem, "127.0.0.1", port)
    pod = gateway_view(gateway_body("g1", "127.0.0.1"))
    async with way(port, passes) as through:
        client = EgressGateways(authority, port=through)
        heard = asyncio.Event()

        async def follow() -> None:
            async for _ in client.decisions(pod, "", 0):
                heard.set()

        gateway.decide(egress_pb2.Decision(host="a.example", count=1))
        following = asyncio.create_task(follow())
        await heard.wait()
        passes.clear()
        await until(following.done)
        assert isinstance(following.exception(), TransientError)
        await client.aclose()
    await gateway.stop()


def sooner(option: tuple[str, Any]) -> tuple[str, Any]:
    """A minute, to which gRPC keeps where it is told nothing, stays one."""
    name, value = option
    return name, value // 100 if "keepalive_time" in name or "timeout_ms" in name else value
