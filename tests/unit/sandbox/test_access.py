"""Who may call an exec server, before and after the claim, and how often it can be claimed."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.authorize import OPERATOR_ONLY, decide
from support.certificates import TestAuthority
from support.sandbox_server import (
    POD_NAME,
    SESSION_NAME,
    SESSION_UID,
    Sandbox,
    Tools,
    refused,
    sandbox,
)

RPCS = [
    "/cloister.exec.v1.Tools/Call",
    "/cloister.exec.v1.Runtime/Info",
    "/cloister.exec.v1.Runtime/Claim",
    "/grpc.health.v1.Health/Check",
]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("warm")) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        yield server


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def info(channel: grpc.Channel) -> grpc.StatusCode:
    with channel:
        stub = exec_pb2_grpc.RuntimeStub(channel)
        return code_of(lambda: stub.Info(exec_pb2.InfoRequest(), timeout=5))


@pytest.mark.parametrize("method", RPCS)
@pytest.mark.parametrize(
    ("callers", "before", "after"),
    [
        (["operator:cloister"], True, True),
        (["session:me"], False, True),
        (["session:other"], False, False),
        (["session:"], False, False),
        (["me"], False, False),
        ([], False, False),
    ],
)
def test_decisions(method: str, callers: list[str], before: bool, after: bool) -> None:
    assert decide(callers, method, "") is before
    operators_own = method in OPERATOR_ONLY and callers != ["operator:cloister"]
    assert decide(callers, method, "me") is (after and not operators_own)


def test_before_the_claim_only_the_operator_is_heard(warm: Sandbox) -> None:
    issue = warm.authority.issue
    assert info(warm.operator()) is grpc.StatusCode.OK
    worker = issue(uri=f"session:{SESSION_UID}")
    assert info(warm.channel(worker, POD_NAME)) is grpc.StatusCode.PERMISSION_DENIED
    assert info(warm.channel(issue(dns="x.test"), POD_NAME)) is grpc.StatusCode.PERMISSION_DENIED


def test_no_certificate_and_a_foreign_ca_fail_the_handshake(warm: Sandbox) -> None:
    assert info(warm.channel(None, POD_NAME)) is grpc.StatusCode.UNAVAILABLE
    foreign = TestAuthority().issue(uri="operator:cloister")
    assert info(warm.channel(foreign, POD_NAME)) is grpc.StatusCode.UNAVAILABLE


def check(channel: grpc.Channel, service: bytes = b"") -> bytes:
    with channel:
        method: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        return bytes(method(service, timeout=5))


def test_health_needs_a_certificate_too(warm: Sandbox) -> None:
    assert check(warm.operator()) == b"\x08\x01"
    stranger = warm.authority.issue(uri="session:x")
    with pytest.raises(grpc.RpcError) as failure:
        check(warm.channel(stranger, POD_NAME))
    assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_health_is_that_of_the_whole_server(warm: Sandbox) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        check(warm.operator(), b"\x0a\x05Tools")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


def test_tools_need_a_claim(warm: Sandbox) -> None:
    with warm.operator() as channel, pytest.raises(grpc.RpcError) as failure:
        Tools(channel).bash("true")
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_claim_is_checked(warm: Sandbox) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        warm.claim(pod_uid="another-pod")
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"certificate_pem": b"x"}, "certificate_pem"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"files": [exec_pb2.SessionFile(path="/etc/passwd")]}, "files[0].path"),
        ({"files": [exec_pb2.SessionFile(path="/workspace/../etc/x")]}, "files[0].path"),
        ({"files": [exec_pb2.SessionFile(path="/workspace/x", mode=0o1777)]}, "files[0].mode"),
        ({"session_uid": ""}, "session_uid"),
    ]
    for fields, field in wrong:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, field, "google.rpc.BadRequest"):
            warm.claim(**fields)


def test_the_claim_changes_who_is_heard_and_the_name(tmp_path: Path) -> None:
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        early = server.channel(server.authority.issue(uri="session:other"), POD_NAME)
        assert not server.claim(env={"WHO": "session"}).replayed
        with server.worker() as channel:
            assert Tools(channel).bash("echo $WHO") == "session"
        other = server.authority.issue(uri="session:other")
        assert info(server.channel(other, SESSION_NAME)) is grpc.StatusCode.PERMISSION_DENIED
        assert info(early) in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
        worker = server.authority.issue(uri=f"session:{SESSION_UID}")
        assert info(server.channel(worker, POD_NAME)) is grpc.StatusCode.UNAVAILABLE


def test_one_claim_per_boot(claimed: Sandbox) -> None:
    with claimed.operator(SESSION_NAME) as channel:
        stub = exec_pb2_grpc.RuntimeStub(channel)
        pair = claimed.authority.issue(dns="x.test")
        request = exec_pb2.ClaimRequest(
            session_uid=SESSION_UID,
            pod_uid="pod-uid-1",
            certificate_pem=pair.certificate,
            private_key_pem=pair.private_key,
        )
        assert stub.Claim(request, timeout=5).replayed
        request.session_uid = "thief"
        assert code_of(lambda: stub.Claim(request, timeout=5)) is (
            grpc.StatusCode.FAILED_PRECONDITION
        )
        probe = exec_pb2.ProbeRequest(targets=["127.0.0.1:1"])
        assert code_of(lambda: stub.Probe(probe, timeout=5)) is grpc.StatusCode.FAILED_PRECONDITION


def test_a_worker_may_not_use_the_operators_calls(claimed: Sandbox) -> None:
    with claimed.worker() as channel:
        stub = exec_pb2_grpc.RuntimeStub(channel)
        for call in (
            lambda: stub.Claim(exec_pb2.ClaimRequest(), timeout=5),
            lambda: stub.Drain(exec_pb2.DrainRequest(), timeout=5),
            lambda: stub.Probe(exec_pb2.ProbeRequest(), timeout=5),
            lambda: stub.Trust(exec_pb2.TrustRequest(ca_pem=claimed.authority.pem), timeout=5),
        ):
            assert code_of(call) is grpc.StatusCode.PERMISSION_DENIED


def trust(server: Sandbox, name: str, *bundle: TestAuthority) -> None:
    pem = b"".join(each.pem for each in bundle)
    with server.operator(name) as channel:
        stub = exec_pb2_grpc.RuntimeStub(channel)
        stub.Trust(exec_pb2.TrustRequest(ca_pem=pem), timeout=5)


def heard(server: Sandbox, signer: TestAuthority, uri: str, name: str = SESSION_NAME) -> bool:
    """Whether the server takes a caller that `signer` certifies."""
    pair = signer.issue(uri=uri)
    return info(server.channel(pair, name)) is grpc.StatusCode.OK


def test_another_ca_is_trusted_beside_the_first_and_then_alone(tmp_path: Path) -> None:
    after, session = TestAuthority(), f"session:{SESSION_UID}"
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        assert not heard(server, after, "operator:cloister", POD_NAME)
        trust(server, POD_NAME, server.authority, after)
        assert heard(server, after, "operator:cloister", POD_NAME)
        server.claim()
        # A claim keeps what was said of the CAs, and who is connected stays so.
        with server.worker() as channel:
            tools = Tools(channel)
            assert tools.bash("echo before") == "before"
            assert heard(server, after, session)
            assert heard(server, server.authority, session)
            assert not heard(server, after, "session:another")
            assert not heard(server, TestAuthority(), session)
            trust(server, SESSION_NAME, after)
            assert tools.bash("echo after") == "after"
        assert heard(server, after, session)
        assert not heard(server, server.authority, session)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"certificates",
        b"-----BEGIN CERTIFICATE-----\nMII!\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
        b"more\n" + TestAuthority().pem,
        TestAuthority().pem * 200,
    ],
)
def test_what_is_no_bundle_of_cas_changes_nothing(warm: Sandbox, wrong: bytes) -> None:
    with warm.operator() as channel:
        stub = exec_pb2_grpc.RuntimeStub(channel)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "ca_pem", "google.rpc.BadRequest"):
            stub.Trust(exec_pb2.TrustRequest(ca_pem=wrong), timeout=5)
    assert info(warm.operator()) is grpc.StatusCode.OK


def test_the_probe_tells_open_from_closed(warm: Sandbox) -> None:
    with warm.operator() as channel:
        stub = exec_pb2_grpc.RuntimeStub(channel)
        here = f"127.0.0.1:{warm.port}"
        request = exec_pb2.ProbeRequest(targets=[here, "127.0.0.1:1"])
        assert list(stub.Probe(request, timeout=5).reachable) == [here]
        wrong = exec_pb2.ProbeRequest(targets=["example.test:80"])
        assert code_of(lambda: stub.Probe(wrong, timeout=5)) is grpc.StatusCode.INVALID_ARGUMENT


def test_without_an_identity_nothing_is_served(tmp_path: Path) -> None:
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        for name in ("tls.crt", "tls.key", "ca.crt"):
            path = tmp_path / "identity" / name
            content = path.read_bytes()
            path.unlink()
            again = subprocess.run(server.command, env=server.env, capture_output=True, check=False)
            assert again.returncode == 1
            assert f"no identity, not serving: {path}".encode() in again.stderr
            path.write_bytes(content)
