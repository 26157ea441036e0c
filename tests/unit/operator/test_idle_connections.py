"""Connections to the Sessions API on which nobody calls anything."""

import asyncio
import ssl
from datetime import UTC, datetime

from cloister_api.sessions.v1 import sessions_pb2 as pb
from cloister_api.sessions.v1 import sessions_pb2_grpc
from cloister_operator.identity import Authority
from cloister_operator.sessions_api.auth import Auth
from cloister_operator.sessions_api.guard import Guard
from cloister_operator.sessions_api.server import SessionsServer
from support.sessions_parts import ALICE, NS, FakeBackend, FakeReviewer, channel, get, made

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)


async def test_a_connection_without_a_call_ends_and_one_with_a_call_lasts() -> None:
    authority = Authority.create(datetime.now(UTC))
    backend, reviewer = FakeBackend(), FakeReviewer()
    backend.sessions["s1"] = made()
    guard = Guard(Auth(reviewer))
    server = SessionsServer(backend, reviewer, authority, guard=guard, idle_seconds=0.3)
    port = await server.start("127.0.0.1:0")
    metadata = [("authorization", f"Bearer {ALICE}")]
    async with channel(port, authority) as opened:
        stub = sessions_pb2_grpc.SessionsStub(opened)
        watch = stub.Watch(pb.WatchSessionsRequest(namespace=NS), metadata=metadata, timeout=60)
        await watch.initial_metadata()
        for _ in range(3):
            # Each lasts for as long as the watch may be without a word.
            assert await held(port, authority)
        assert not watch.done()
        watch.cancel()
    async with channel(port, authority) as opened:
        stub = sessions_pb2_grpc.SessionsStub(opened)
        await stub.Get(get(), metadata=metadata, timeout=60)
        assert await held(port, authority)
        # Its connection has ended meanwhile, which its caller does not notice.
        await stub.Get(get(), metadata=metadata, timeout=60)
    await server.stop(0)


async def held(port: int, authority: Authority) -> bool:
    """Waits until the server ends a connection on which nothing is asked; what it said last."""
    context = ssl.create_default_context(cadata=authority.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    name = "sessions.cloister.dev"
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name
    )
    writer.write(PREFACE)
    heard = await reader.read()
    writer.close()
    return bool(heard)
