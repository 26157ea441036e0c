"""The server's certificate: replaced by the claim, while handshakes come in at the same time."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox import handover
from cloister_sandbox.identity import KeyPair, ServerIdentity
from support.certificates import TestAuthority
from support.sandbox_server import SESSION_NAME, SESSION_UID, Sandbox, free_port

AT_ONCE = 8
HANDSHAKES = 2000 if "SOAK" in os.environ else 400


def test_grpc_is_told_of_a_certificate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fetchers: list[Callable[[], object]] = []

    def credentials(initial: object, fetcher: Callable[[], object], **_: Any) -> None:
        assert initial is not None
        fetchers.append(fetcher)

    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", credentials)
    authority = TestAuthority()
    pod, session = (authority.issue(dns=name) for name in ("pod.test", "session.test"))
    identity = ServerIdentity(KeyPair(pod.certificate, pod.private_key), authority.pem)
    identity.credentials()
    (fetch,) = fetchers
    assert fetch() is None
    identity.replace(KeyPair(session.certificate, session.private_key))
    assert fetch() is not None
    assert fetch() is None


async def test_a_handshake_with_the_old_certificate_waits_while_the_new_one_is_taken() -> None:
    authority = TestAuthority()
    pod, session = (authority.issue(dns=name) for name in ("pod.test", "session.test"))
    identity = ServerIdentity(KeyPair(pod.certificate, pod.private_key), authority.pem)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", identity.credentials())
    await server.start()
    begun: list[asyncio.StreamWriter] = []
    begin = handover._begin

    async def kept(listen: str) -> asyncio.StreamWriter | None:
        found = await begin(listen)
        assert found is not None
        begun.append(found)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(handover, "_begin", kept)
        await handover.hand_over(
            f"127.0.0.1:{port}",
            lambda: identity.replace(KeyPair(session.certificate, session.private_key)),
        )
    assert identity._next is None
    assert [each.is_closing() for each in begun] == [False, True]
    begun[0].close()
    await server.stop(0)


async def test_a_server_that_cannot_be_reached_is_offered_its_certificate() -> None:
    offered: list[bool] = []
    await handover.hand_over(f"127.0.0.1:{free_port()}", lambda: offered.append(True))
    assert offered == [True]


def test_handshakes_in_many_threads_do_not_end_the_server(claimed: Sandbox) -> None:
    worker = claimed.authority.issue(uri=f"session:{SESSION_UID}")

    def connect(_number: int) -> int:
        with claimed.channel(worker, SESSION_NAME) as channel:
            stub = exec_pb2_grpc.RuntimeStub(channel)
            info: exec_pb2.RuntimeInfo = stub.Info(exec_pb2.InfoRequest(), timeout=30)
            return info.state

    with ThreadPoolExecutor(AT_ONCE) as threads:
        states = set(threads.map(connect, range(HANDSHAKES)))
    assert states == {exec_pb2.RuntimeInfo.STATE_CLAIMED}
    assert claimed.process.poll() is None
