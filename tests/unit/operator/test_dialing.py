"""Dialing exec servers: a real one."""

import asyncio
import tarfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister_operator.api.backend import NewFile
from cloister_operator.errors import ConflictError, PermanentError, TransientError
from cloister_operator.identity import Authority
from cloister_operator.sandboxes import (
    PodAddress,
    Sandboxes,
    SandboxFailed,
    SandboxState,
    clean,
)
from support.certificates import Pair
from support.dialed_pods import HOUR, SESSION, FakeRuntime, Signer, address, fake, payload, soon
from support.sandbox_server import Sandbox, Tools, sandbox

USERS = Path("/proc/self/uid_map").read_text().split()


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
