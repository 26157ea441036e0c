"""The Sessions API's own certificate, and who takes it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from cloister_api.sessions.v1 import sessions_pb2_grpc
from cloister_operator.identity import Authority
from cloister_operator.sessions_api.server import SessionsServer, _Renewed
from support.sessions_parts import (
    ALICE,
    Api,
    FakeBackend,
    FakeReviewer,
    channel,
    get,
    made,
)


async def test_clients_that_trust_another_ca_do_not_talk_to_it(api: Api) -> None:
    async with channel(api.port, Authority.create(datetime.now(UTC))) as foreign:
        stub = sessions_pb2_grpc.SessionsStub(foreign)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(get(), metadata=[("authorization", f"Bearer {ALICE}")], timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not api.reviewer.token_reviews


async def test_no_other_service_and_no_plaintext(api: Api) -> None:
    async with channel(api.port, api.authority) as opened:
        unknown: Any = opened.unary_unary("/cloister.sessions.v1.Sessions/Destroy")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with grpc.aio.insecure_channel(f"127.0.0.1:{api.port}") as plain:
        stub = sessions_pb2_grpc.SessionsStub(plain)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(get(), metadata=[("authorization", f"Bearer {ALICE}")], timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_certificate_is_renewed_without_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = datetime.now(UTC) - timedelta(days=61)
    authority = Authority.create(now)
    backend, reviewer = FakeBackend(), FakeReviewer()
    backend.sessions["s1"] = made()
    issued: list[datetime] = []
    issue = authority.sessions_api_server

    def counted(when: datetime, *rest: Any) -> Any:
        issued.append(when)
        return issue(when, *rest)

    monkeypatch.setattr(authority, "sessions_api_server", counted)
    server = SessionsServer(
        backend, reviewer, authority, ip_addresses=["10.0.0.7"], clock=lambda: now
    )
    port = await server.start("127.0.0.1:0")

    async def call() -> None:
        async with channel(port, authority) as opened:
            stub = sessions_pb2_grpc.SessionsStub(opened)
            await stub.Get(get(), metadata=[("authorization", f"Bearer {ALICE}")], timeout=10)

    await call()
    await call()
    assert len(issued) == 1
    now += timedelta(days=61)
    await call()
    await call()
    assert len(issued) == 2
    await server.stop(0)


def test_grpc_is_told_of_a_certificate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # What it is told of frees what other threads use: at every handshake that ends in a crash.
    now = datetime.now(UTC)
    renewed = _Renewed(Authority.create(now), [], lambda: now)
    assert renewed.fetch() is None
    now += timedelta(days=61)
    assert renewed.fetch() is not None
    assert renewed.fetch() is None
