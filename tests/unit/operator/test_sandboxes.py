"""Dialing exec servers: a real one, and impostors."""

import asyncio
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_operator.api.backend import NewFile
from cloister_operator.errors import ConflictError, LostError, PermanentError, TransientError
from cloister_operator.identity import Authority, Identity
from cloister_operator.sandboxes import (
    ClaimPayload,
    PodAddress,
    Sandboxes,
    SandboxFailed,
    SandboxState,
    clean,
)
from support.certificates import Pair
from support.sandbox_server import POD_UID, Sandbox, Tools, free_port, sandbox

USERS = Path("/proc/self/uid_map").read_text().split()
HOUR = timedelta(hours=1)
SESSION = "11111111-2222-3333-4444-555555555555"


class Signer:
    """The product's authority where the exec server's helper expects the tests' own."""

    def __init__(self) -> None:
        self.authority = Authority.create(datetime.now(UTC))
        self.pem = self.authority.ca_pem

    def issue(self, *, dns: str = "", uri: str = "") -> Pair:
        now = datetime.now(UTC)
        if dns:
            made = self.authority.pod_server(dns.removeprefix("pod-").split(".")[0], now)
        else:
            made = self.authority.operator_client(now)
        return Pair(made.certificate_pem, made.private_key_pem)


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch) -> Authority:
    signer = Signer()
    monkeypatch.setattr("support.sandbox_server.TestAuthority", lambda: signer)
    return signer.authority


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(tmp_path) as made:
        yield made


@pytest.fixture
async def sandboxes(authority: Authority) -> AsyncIterator[Sandboxes]:
    made = Sandboxes(authority)
    yield made
    await made.aclose()


def address(port: int, uid: str = POD_UID) -> PodAddress:
    return PodAddress(name="pod-1", uid=uid, ip="127.0.0.1", port=port)


def soon(seconds: float = 10) -> float:
    return time.monotonic() + seconds


def payload(authority: Authority, session: str = SESSION, **given: Any) -> ClaimPayload:
    identity = authority.session_server(session, datetime.now(UTC), HOUR)
    return ClaimPayload(session, "s1", identity, **given)


async def test_a_session_is_handed_over(
    authority: Authority, server: Sandbox, sandboxes: Sandboxes
) -> None:
    pod = address(server.port)
    info = await sandboxes.wait_warm(pod, soon())
    assert info.state is SandboxState.WARM
    assert info.boot_id
    await sandboxes.claim(
        pod,
        payload(authority, env={"GREETING": "hello"}),
    )
    client = authority.session_client(SESSION, datetime.now(UTC), HOUR)
    pair = Pair(client.certificate_pem, client.private_key_pem)
    with server.channel(pair, f"session-{SESSION}.sandbox.cloister.dev") as channel:
        said = await asyncio.to_thread(Tools(channel).bash, "echo $GREETING")
    assert said.strip() == "hello"
    activity = await sandboxes.activity(pod, SESSION)
    assert activity.idle_for >= timedelta(0)
    assert activity.running_calls == 0


async def test_files_are_brought_to_a_pod_that_waits_for_them(
    authority: Authority, sandboxes: Sandboxes, tmp_path: Path
) -> None:
    tree = tmp_path / "s" / "workspace" / "project"
    archive = tmp_path / "files.tar"
    (tmp_path / "big").write_bytes(bytes(3_000_000) + b"end")
    with tarfile.open(archive, "w") as made:
        made.add(tmp_path / "big", "dir/big")
    bad = tmp_path / "bad.tar"
    with tarfile.open(bad, "w") as made:
        made.addfile(tarfile.TarInfo("../out"))
    with sandbox(tmp_path / "s", {"trees": [{"path": str(tree), "commit": "c"}]}) as server:
        pod = address(server.port)
        info = await sandboxes.wait_warm(pod, soon())
        assert (info.state, info.awaits) == (SandboxState.PREPARING, (str(tree),))
        with pytest.raises(SandboxFailed, match="cannot be placed") as caught:
            await sandboxes.deliver(pod, str(tree), bad)
        assert caught.value.reason == "SetupFailed"
        await sandboxes.deliver(pod, str(tree), archive)
        info = await sandboxes.wait_warm(pod, soon())
        assert (info.state, info.awaits, info.takes_trees) == (SandboxState.WARM, (), True)
    assert (tree / "dir" / "big").read_bytes() == (tmp_path / "big").read_bytes()


async def test_a_drained_pod_lets_calls_finish_and_tells_what_it_did(
    authority: Authority, server: Sandbox, sandboxes: Sandboxes
) -> None:
    pod = address(server.port)
    await sandboxes.wait_warm(pod, soon())
    await sandboxes.claim(pod, payload(authority))
    client = authority.session_client(SESSION, datetime.now(UTC), HOUR)
    pair = Pair(client.certificate_pem, client.private_key_pem)
    with server.channel(pair, f"session-{SESSION}.sandbox.cloister.dev") as channel:
        tools = Tools(channel)
        command = "touch begun; while [ ! -e go ]; do sleep 0.02; done; echo done"
        running = asyncio.ensure_future(asyncio.to_thread(tools.bash, command))
        while not (server.workspace / "begun").exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)
        assert (await sandboxes.activity(pod, SESSION)).running_calls == 1
        draining = asyncio.ensure_future(sandboxes.drain(pod, SESSION, timedelta(seconds=10)))
        while not running.done():
            (server.workspace / "go").touch()
            await asyncio.sleep(0.02)
        assert (await running).strip() == "done"
        await draining
    activity = await sandboxes.activity(pod, SESSION)
    assert activity.running_calls == 0
    assert activity.active > timedelta(0)


async def test_before_the_server_listens_it_is_dialed_again(
    authority: Authority, sandboxes: Sandboxes
) -> None:
    async with fake(authority, FakeRuntime(), start=False) as (pod, begin):
        waiting = asyncio.ensure_future(sandboxes.wait_warm(pod, soon()))
        refused = asyncio.ensure_future(sandboxes.wait_warm(pod, soon(0.1)))
        with pytest.raises(TransientError, match="does not answer"):
            await refused
        await begin()
        assert (await waiting).state is SandboxState.WARM


async def _until_it_is_over(sandboxes: Sandboxes, pod: PodAddress) -> None:
    info = await sandboxes.wait_warm(pod, soon())
    while info.awaits_proof:
        info = await sandboxes.wait_warm(pod, soon())


async def test_a_failed_setup_is_reported_with_its_reason(
    authority: Authority, sandboxes: Sandboxes, tmp_path: Path
) -> None:
    recipe = {"setup": "echo broken >&2; exit 3"}
    with sandbox(tmp_path, recipe) as server:
        pod = address(server.port)
        waiting = await sandboxes.wait_warm(pod, soon())
        assert (waiting.state, waiting.awaits_proof) == (SandboxState.PREPARING, True)
        await sandboxes.prepare(pod)
        with pytest.raises(SandboxFailed) as failure:
            await _until_it_is_over(sandboxes, pod)
    assert failure.value.reason == "SetupFailed"
    assert failure.value.sentence


async def test_claiming_again_is_a_replay_and_another_session_is_refused(
    authority: Authority, server: Sandbox, sandboxes: Sandboxes
) -> None:
    pod = address(server.port)
    await sandboxes.wait_warm(pod, soon())
    first = payload(authority)
    await sandboxes.claim(pod, first)
    await sandboxes.claim(pod, first)
    # A new operator knows nothing of the claim.
    other = Sandboxes(authority)
    info = await other.wait_warm(pod, soon(), session_uid=SESSION)
    assert (info.state, info.session_uid) == (SandboxState.CLAIMED, SESSION)
    await other.claim(pod, first)
    with pytest.raises(TransientError):
        await other.claim(pod, payload(authority, "99999999-2222-3333-4444-555555555555"))
    await other.aclose()


async def test_another_session_is_a_conflict_on_a_connection_older_than_the_claim(
    authority: Authority, server: Sandbox, sandboxes: Sandboxes
) -> None:
    pod = address(server.port)
    other = Sandboxes(authority)
    await sandboxes.wait_warm(pod, soon())
    await other.wait_warm(pod, soon())
    await sandboxes.claim(pod, payload(authority))
    with pytest.raises(ConflictError):
        await other.claim(pod, payload(authority, "99999999-2222-3333-4444-555555555555"))
    await other.aclose()


async def test_a_pod_refuses_what_is_meant_for_another_pod(
    authority: Authority, server: Sandbox, sandboxes: Sandboxes
) -> None:
    with pytest.raises(TransientError, match="not ready in time"):
        await sandboxes.wait_warm(address(server.port, uid="other-pod"), soon(0.5))
    with pytest.raises(TransientError):
        await sandboxes.claim(address(server.port, uid="other-pod"), payload(authority))
    info = await sandboxes.wait_warm(address(server.port), soon())
    assert info.session_uid == ""


async def test_an_operator_of_a_foreign_ca_gets_nowhere(server: Sandbox) -> None:
    foreign = Sandboxes(Authority.create(datetime.now(UTC)))
    with pytest.raises(TransientError):
        await foreign.wait_warm(address(server.port), soon(0.5))
    await foreign.aclose()


async def test_refused_files_name_their_field(
    authority: Authority, server: Sandbox, sandboxes: Sandboxes
) -> None:
    pod = address(server.port)
    await sandboxes.wait_warm(pod, soon())
    with pytest.raises(PermanentError, match=r"files\[0\]") as failure:
        await sandboxes.claim(pod, payload(authority, files=[NewFile("/etc/x", 0o644, b"")]))
    assert failure.value.reason == "SessionRefused"
    await sandboxes.claim(pod, payload(authority))


async def test_probe_finds_what_can_be_reached(server: Sandbox, sandboxes: Sandboxes) -> None:
    pod = address(server.port)
    await sandboxes.wait_warm(pod, soon())
    own = f"127.0.0.1:{server.port}"
    assert await sandboxes.probe(pod, ["127.0.0.1:1", own]) == [own]
    assert await sandboxes.probe(pod, ["127.0.0.1:1"]) == []


async def test_a_pod_says_what_its_image_knows(server: Sandbox, sandboxes: Sandboxes) -> None:
    pod = address(server.port)
    info = await sandboxes.wait_warm(pod, soon())
    assert info.uid_map.split() == USERS
    answers = await sandboxes.package_sources(pod)
    assert all(urls for _, urls in answers)


async def test_a_forgotten_pod_is_dialed_anew(server: Sandbox, sandboxes: Sandboxes) -> None:
    pod = address(server.port)
    await sandboxes.wait_warm(pod, soon())
    sandboxes.forget(pod.uid)
    sandboxes.forget("never known")
    assert (await sandboxes.wait_warm(pod, soon())).state is SandboxState.WARM


# Impostors: exec servers that answer as a hostile pod may.


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


async def test_answers_are_cleaned(authority: Authority, sandboxes: Sandboxes) -> None:
    runtime = FakeRuntime()
    runtime.info.version = "v" * 5000
    runtime.info.boot_id = "b\r\nINFO forged\u202etxet"
    async with fake(authority, runtime) as (pod, _):
        info = await sandboxes.wait_warm(pod, soon())
        assert len(info.version) == 128
        assert info.boot_id == "b INFO forged txet"
        runtime.info.state = exec_pb2.RuntimeInfo.STATE_FAILED
        runtime.info.problem = "no\x00\x1b[2J" + "y" * 9000
        with pytest.raises(SandboxFailed) as failure:
            await sandboxes.wait_warm(pod, soon())
        assert failure.value.sentence.startswith("no [2Jyyy")
        assert len(failure.value.sentence) == 1024


async def test_a_state_that_does_not_exist_is_misbehaviour(
    authority: Authority, sandboxes: Sandboxes
) -> None:
    runtime = FakeRuntime()
    runtime.info = exec_pb2.RuntimeInfo.FromString(b"\x28\x63")  # state = 99
    async with fake(authority, runtime) as (pod, _):
        with pytest.raises(SandboxFailed) as failure:
            await sandboxes.wait_warm(pod, soon())
    assert failure.value.reason == "SandboxMisbehaves"


async def test_a_huge_answer_is_misbehaviour(authority: Authority, sandboxes: Sandboxes) -> None:
    runtime = FakeRuntime()
    runtime.info.problem = "x" * 1_000_000
    async with fake(authority, runtime) as (pod, _):
        with pytest.raises(SandboxFailed) as failure:
            await sandboxes.wait_warm(pod, soon())
    assert failure.value.reason == "SandboxMisbehaves"


async def test_reaching_what_was_not_asked_is_misbehaviour(
    authority: Authority, sandboxes: Sandboxes
) -> None:
    runtime = FakeRuntime()
    runtime.probe.reachable.append("10.0.0.1:443")
    async with fake(authority, runtime) as (pod, _):
        with pytest.raises(SandboxFailed):
            await sandboxes.probe(pod, ["10.0.0.2:443"])


async def test_sources_of_packages_are_cleaned_and_bounded(
    authority: Authority, sandboxes: Sandboxes
) -> None:
    runtime = FakeRuntime()
    for url in ("https://a.example/", "https://b.example/\r\nforged\x1b[2J", "x" * 9000):
        runtime.packages.sources.add(manager="pip\u202e", url=url)
    async with fake(authority, runtime) as (pod, _):
        ((manager, urls),) = await sandboxes.package_sources(pod)
        assert manager == "pip"
        assert urls[:2] == ["https://a.example/", "https://b.example/ forged [2J"]
        assert len(urls[2]) == 1024
        for _ in range(300):
            runtime.packages.sources.add(manager="pip", url="https://a.example/")
        with pytest.raises(SandboxFailed) as failure:
            await sandboxes.package_sources(pod)
    assert failure.value.reason == "SandboxMisbehaves"


async def test_a_map_of_users_is_cleaned(authority: Authority, sandboxes: Sandboxes) -> None:
    runtime = FakeRuntime()
    runtime.info.uid_map = "0 100000 65536\n\x1b[2J 1\u202e 2" + "9" * 9000
    async with fake(authority, runtime) as (pod, _):
        info = await sandboxes.wait_warm(pod, soon())
    assert info.uid_map.startswith("0 100000 65536\n[2J 1 2")
    assert len(info.uid_map) <= 1024


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (Duration(seconds=-5), timedelta(0)),
        (Duration(seconds=7), timedelta(seconds=7)),
        (Duration(seconds=60_000_000_000), timedelta(days=3650)),
        (Duration(seconds=2**62), None),
    ],
)
async def test_times_that_cannot_be(
    authority: Authority, sandboxes: Sandboxes, given: Duration, seen: timedelta | None
) -> None:
    runtime = FakeRuntime()
    runtime.activity.idle_for.CopyFrom(given)
    async with fake(authority, runtime, uid=SESSION) as (pod, _):
        if seen is None:
            with pytest.raises(SandboxFailed):
                await sandboxes.activity(pod, SESSION)
        else:
            assert (await sandboxes.activity(pod, SESSION)).idle_for == seen


async def test_the_words_of_a_failure_are_cleaned(
    authority: Authority, sandboxes: Sandboxes
) -> None:
    runtime = FakeRuntime()
    runtime.fault = "no\n\x1b[31m2026-01-01 INFO forged line"
    async with fake(authority, runtime, uid=SESSION) as (pod, _):
        with pytest.raises(SandboxFailed) as failure:
            await sandboxes.activity(pod, SESSION)
    assert "INTERNAL: no [31m2026" in str(failure.value)
    assert str(failure.value).isprintable()


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED])
async def test_a_pod_that_has_its_hands_full_is_asked_again(
    authority: Authority, sandboxes: Sandboxes, code: grpc.StatusCode
) -> None:
    """So answers the exec server of a session that uses all the calls it may have at a time: an
    error that ends sessions would take its work.
    """
    runtime = FakeRuntime()
    runtime.fault, runtime.fault_code = "Concurrent RPC limit exceeded!", code
    async with fake(authority, runtime, uid=SESSION) as (pod, _):
        with pytest.raises(TransientError, match="has no room"):
            await sandboxes.activity(pod, SESSION)
        runtime.fault = ""
        assert (await sandboxes.activity(pod, SESSION)).running_calls == 0


async def test_a_claim_without_an_answer_is_lost(
    authority: Authority, sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister_operator.sandboxes.dialer.CALL_SECONDS", 0.2)
    async with fake(authority, FakeRuntime()) as (pod, _):
        with pytest.raises(LostError):
            await sandboxes.claim(pod, payload(authority))


async def test_a_claim_larger_than_a_pod_takes_is_refused_before_it_is_sent(
    authority: Authority, sandboxes: Sandboxes
) -> None:
    big = NewFile("/workspace/a", 0o644, b"x" * (33 * 1024 * 1024))
    with pytest.raises(PermanentError) as failure:
        await sandboxes.claim(address(1), payload(authority, files=[big]))
    assert failure.value.field == "spec.files"


async def test_one_channel_serves_until_the_operators_certificate_is_renewed(
    authority: Authority,
) -> None:
    now = datetime.now(UTC) - timedelta(days=61)
    sandboxes = Sandboxes(authority, clock=lambda: now)
    runtime = FakeRuntime()
    async with fake(authority, runtime) as (pod, _):
        await sandboxes.wait_warm(pod, soon())
        await sandboxes.wait_warm(pod, soon())
        assert len(set(runtime.peers)) == 1
        now += timedelta(days=61)
        await sandboxes.wait_warm(pod, soon())
        assert len(set(runtime.peers)) == 2
        await sandboxes.aclose()


async def test_open_channels_are_bounded_and_calls_are_not_cut(authority: Authority) -> None:
    sandboxes = Sandboxes(authority, max_links=1)
    first, second = FakeRuntime(), FakeRuntime()
    first.block = asyncio.Event()
    async with fake(authority, first) as (one, _), fake(authority, second, "pod-2") as (two, _):
        waiting = asyncio.ensure_future(sandboxes.wait_warm(one, soon()))
        await first.called.wait()
        await sandboxes.wait_warm(PodAddress("pod-2", "pod-2", two.ip, two.port), soon())
        first.block.set()
        await waiting
        # Both are idle now: the next use of one closes the other.
        await sandboxes.wait_warm(one, soon())
        await sandboxes.wait_warm(PodAddress("pod-2", "pod-2", two.ip, two.port), soon())
        await sandboxes.wait_warm(one, soon())
        assert len(set(first.peers)) + len(set(second.peers)) > 2
        await sandboxes.aclose()


async def test_closing_a_channel_under_a_call_is_no_cancellation(
    authority: Authority, sandboxes: Sandboxes
) -> None:
    runtime = FakeRuntime()
    async with fake(authority, runtime) as (pod, _):
        claim = asyncio.ensure_future(sandboxes.claim(pod, payload(authority)))
        await runtime.called.wait()
        sandboxes.forget(pod.uid)
        await asyncio.wait([claim])
        assert not claim.cancelled()
        assert isinstance(claim.exception(), LostError)


async def test_a_cancelled_caller_is_cancelled(authority: Authority, sandboxes: Sandboxes) -> None:
    runtime = FakeRuntime()
    async with fake(authority, runtime) as (pod, _):
        claim = asyncio.ensure_future(sandboxes.claim(pod, payload(authority)))
        await runtime.called.wait()
        claim.cancel()
        await asyncio.wait([claim])
        assert claim.cancelled()


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("", ""),
        ("plain sentence.", "plain sentence."),
        ("a\tb\n\nc", "a b c"),
        ("x" * 20, "xxxxxxxxx…"),
        ("\u2028\u202e\ufeff\x7f\x9b", ""),
        ("äöü 漢字", "äöü 漢字"),
    ],
)
def test_clean(given: str, seen: str) -> None:
    assert clean(given, 10 if len(given) >= 20 else 100) == seen


def test_ipv6_endpoints_have_brackets() -> None:
    assert PodAddress("p", "u", "fd00::1").endpoint == "[fd00::1]:7443"
    with pytest.raises(ValueError, match="does not appear to be"):
        _ = PodAddress("p", "u", "host.example").endpoint
