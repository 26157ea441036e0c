"""Warm pods that do not answer when a session is to have them, or whose node is not heard of."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.api.pod import view
from cloister_operator.api.session import FirstPod
from cloister_operator.controller.warmer import STARTUP_LIMIT
from cloister_operator.errors import TransientError
from cloister_operator.sandboxes import ClaimPayload, PodAddress, SandboxInfo
from support.fake_operator import Operator, World
from support.kept_sessions import KEPT, claims, status_of_claims
from support.operator_objects import NAMESPACE, NOW

JSON = dict[str, Any]
Silence = Callable[[str], None]


@pytest.fixture
def silence(world: World, monkeypatch: pytest.MonkeyPatch) -> Silence:
    """The pod of this UID answers no claim; nobody is patient."""
    monkeypatch.setattr("cloister_operator.controller.handovers.SILENT_TOLD", 0.0)
    monkeypatch.setattr("cloister_operator.controller.handovers.SILENT_PATIENCE", 0.1)
    silent: set[str] = set()
    claim = world.sandboxes.claim

    async def answers(pod: PodAddress, payload: ClaimPayload) -> bool:
        if pod.uid in silent:
            raise TransientError(f"pod {pod.name} does not answer")
        return await claim(pod, payload)

    monkeypatch.setattr(world.sandboxes, "claim", answers)
    return silent.add


async def one_warm(world: World, **spec: Any) -> tuple[Operator, JSON]:
    world.apply_environment(**spec, pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (warm,) = (each["metadata"] for each in world.pods())
    return operator, warm


async def test_a_session_says_that_its_pod_is_silent_and_gets_another(
    world: World, silence: Silence
) -> None:
    operator, warm = await one_warm(world)
    silence(warm["uid"])
    told = False

    def served() -> bool:
        nonlocal told
        told |= world.condition(world.session()) == ("False", "PodSilent")
        return world.served("s1")

    world.apply_session()
    await operator.until(served)
    assert told
    assert world.session()["status"]["podUID"] != warm["uid"]
    await operator.until(lambda: world.pool_is(1) and len(world.pods()) == 2)
    await operator.settle()
    assert operator.controller._sessions._starts._silent == {}


async def test_a_silent_pod_that_a_caller_may_know_of_stays(world: World, silence: Silence) -> None:
    """Another process made the session for it, and may have told that it runs there."""
    operator, warm = await one_warm(world)
    silence(warm["uid"])
    first = FirstPod(warm["name"], warm["uid"], NOW)
    notes = {names.FIRST_POD: str(first), names.ISSUED_BY: names.ISSUED_BY_API}
    uid = world.apply_session(annotations=notes)
    starts = operator.controller._sessions._starts

    def long_silent() -> bool:
        found = operator.context.sessions.get(NAMESPACE, "s1")
        return bool(found and starts._silent and starts.silent(found, view(mine())) > 0.3)

    def mine() -> JSON:
        (found,) = world.pods(session=uid)
        return found

    await operator.until(long_silent)
    assert mine()["metadata"]["uid"] == warm["uid"]
    assert world.condition(world.session()) == ("False", "PodSilent")


@pytest.mark.parametrize(
    ("ready", "silent"),
    [
        ({"status": "False"}, True),
        ({"status": "False", "reason": "ContainersNotReady"}, False),
        ({"status": "True"}, False),
    ],
)
async def test_a_pod_whose_node_is_not_heard_of_is_given_to_nobody(
    world: World, ready: JSON, silent: bool
) -> None:
    operator, warm = await one_warm(world)
    conditions = [{"type": "Ready", **ready}]
    world.cluster.set_pod_status(NAMESPACE, warm["name"], conditions=conditions)
    await operator.settle()
    world.apply_session()
    await operator.until(lambda: world.served("s1"))
    assert (world.session()["status"]["podUID"] != warm["uid"]) is silent


async def test_the_volume_of_a_pod_that_is_given_up_goes_with_it(
    world: World, silence: Silence
) -> None:
    """It became the session's when the exec server was called; the next pod has its own."""
    operator, warm = await one_warm(world, **KEPT)
    silence(warm["uid"])
    world.apply_session()
    await operator.until(lambda: world.served("s1") and world.pool_is(1))
    await operator.settle()
    assert status_of_claims(world).count("session") == 1
    assert len(claims(world)) == 2


async def test_the_volume_of_a_pod_that_refuses_its_session_goes_with_it(world: World) -> None:
    operator, warm = await one_warm(world, **KEPT)
    world.sandboxes.refusing.add(warm["uid"])
    world.apply_session()
    await operator.until(lambda: world.served("s1") and world.pool_is(1))
    await operator.settle()
    assert status_of_claims(world).count("session") == 1
    assert len(claims(world)) == 2


async def silent_after_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> tuple[Operator, str]:
    """An operator that began while a pod that was warm for days, and is a session's now, does not
    answer; and the pod's UID. It has asked the pod some times.
    """
    first, warm = await one_warm(world)
    claim, cut = world.sandboxes.claim, asyncio.Event()

    async def hangs(*_: object) -> bool:
        cut.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(world.sandboxes, "claim", hangs)
    world.apply_session()
    await first.until(cut.is_set)
    await first.kill()
    monkeypatch.setattr(world.sandboxes, "claim", claim)
    monkeypatch.setattr("cloister_operator.controller.warmer.DIAL_SECONDS", 0.01)
    world.clock.now += timedelta(days=2)
    world.sandboxes.answering.clear()
    dials = 0
    wait_warm = world.sandboxes.wait_warm

    async def counted(pod: PodAddress, deadline: float, session_uid: str = "") -> SandboxInfo:
        nonlocal dials
        dials += pod.uid == warm["uid"]
        return await wait_warm(pod, deadline, session_uid)

    monkeypatch.setattr(world.sandboxes, "wait_warm", counted)
    second = world.start()
    await second.until(lambda: dials > 2 or world.phase("s1") == "Failed")
    return second, warm["uid"]


async def test_a_session_outlives_an_old_pods_silence_after_a_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days ago it was given its time to start; it has one again to answer the next operator."""
    operator, pod = await silent_after_restart(world, monkeypatch)
    world.sandboxes.answering.set()
    await operator.until(lambda: world.served("s1"))
    assert world.session()["status"]["podUID"] == pod


async def test_a_session_does_not_wait_without_end_for_an_old_pod(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, pod = await silent_after_restart(world, monkeypatch)
    assert pod not in operator.context.failures
    world.clock.now += STARTUP_LIMIT * 2
    await operator.until(lambda: world.phase("s1") == "Failed")
    assert world.session()["status"]["reason"] == "PodFailed"
