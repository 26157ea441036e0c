"""The server's certificate: replaced by the claim, while handshakes come in at the same time."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox import handover
from cloister_sandbox.identity import KeyPair, ServerIdentity
from support.certificates import Pair, TestAuthority
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


@dataclass
class Served:
    """A server that shows its pod's certificate, and the session's when that is handed over."""

    identity: ServerIdentity
    pod: Pair
    session: Pair
    port: int

    async def hand_over(self) -> None:
        pair = KeyPair(self.session.certificate, self.session.private_key)
        await handover.hand_over(f"127.0.0.1:{self.port}", lambda: self.identity.replace(pair))

    @staticmethod
    async def end_taking() -> None:
        """End what goes on behind the hand-over."""
        (task,) = handover._taking
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    authority = TestAuthority()
    pod, session = (authority.issue(dns=name) for name in ("pod.test", "session.test"))
    identity = ServerIdentity(KeyPair(pod.certificate, pod.private_key), authority.pem)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", identity.credentials())
    await server.start()
    yield Served(identity, pod, session, port)
    await server.stop(0)


async def test_a_handshake_with_the_old_certificate_waits_while_the_new_one_is_taken(
    served: Served,
) -> None:
    begun: list[asyncio.StreamWriter] = []
    begin = handover._begin
    both = asyncio.Event()

    async def kept(listen: str) -> asyncio.StreamWriter | None:
        found = await begin(listen)
        assert found is not None
        begun.append(found)
        if len(begun) == 2:
            asyncio.get_running_loop().call_soon(both.set)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(handover, "_begin", kept)
        await served.hand_over()
        assert served.identity._next is not None
        await both.wait()
    assert served.identity._next is None
    assert [each.is_closing() for each in begun] == [False, True]
    await served.end_taking()
    assert begun[0].is_closing()


async def test_the_next_handshake_has_the_new_certificate(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_TAKEN_SECONDS", 3600)

    async def shown() -> bytes:
        found = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", served.port))
        return ssl.PEM_cert_to_DER_cert(found)

    before = await shown()
    await served.hand_over()
    pairs = (served.pod, served.session)
    expected = [ssl.PEM_cert_to_DER_cert(each.certificate.decode()) for each in pairs]
    assert [before, await shown()] == expected
    await served.end_taking()


async def test_a_server_that_cannot_be_reached_is_offered_its_certificate() -> None:
    offered: list[bool] = []
    await handover.hand_over(f"127.0.0.1:{free_port()}", lambda: offered.append(True))
    assert offered == [True]


@pytest.mark.long
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
