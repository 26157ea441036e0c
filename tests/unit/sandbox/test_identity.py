"""The server's certificate: replaced by the claim, while handshakes come in at the same time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.identity import KeyPair, ServerIdentity
from support.certificates import TestAuthority
from support.sandbox_server import SESSION_NAME, SESSION_UID, Sandbox

AT_ONCE = 8
HANDSHAKES = 2000


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
