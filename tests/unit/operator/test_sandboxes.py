"""Dialing impostors: exec servers that answer as a hostile pod may, or not at all."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from cloister_api.exec.v1 import exec_pb2
from cloister_operator.api.backend import NewFile
from cloister_operator.errors import LostError, PermanentError, TransientError
from cloister_operator.identity import Authority
from cloister_operator.sandboxes import (
    PodAddress,
    Sandboxes,
    SandboxFailed,
)
from support.dialed_pods import SESSION, FakeRuntime, Signer, address, fake, payload, soon


@pytest.fixture
def authority() -> Authority:
    return Signer().authority


@pytest.fixture
async def sandboxes(authority: Authority) -> AsyncIterator[Sandboxes]:
    made = Sandboxes(authority)
    yield made
    await made.aclose()


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
