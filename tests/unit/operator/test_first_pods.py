"""The warm pod that a Session was made for, and what an annotation that names one is worth."""

from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.api.conditions import precise
from cloister_operator.api.session import FirstPod
from cloister_operator.cluster.resources import ENVIRONMENTS, PODS, SESSIONS
from cloister_operator.errors import LostError
from cloister_operator.sandboxes import ClaimPayload, PodAddress
from support.fake_api import Connection
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE, NOW

JSON = dict[str, Any]


def made_for(pod: JSON) -> dict[str, str]:
    """The annotations of a Session that the Sessions API makes for a pod."""
    first = FirstPod(pod["name"], pod["uid"], NOW)
    return {names.FIRST_POD: str(first), names.ISSUED_BY: names.ISSUED_BY_API}


async def test_an_annotation_that_names_a_pod_which_is_starting_counts_for_nothing(
    world: World,
) -> None:
    """Sessions are made for warm pods: this one would wait for ever, and keep the pod."""
    world.sandboxes.answering.clear()
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pods(state=names.STATE_STARTING))
    (starting,) = (each["metadata"] for each in world.pods())
    forged = FirstPod(starting["name"], starting["uid"], NOW)
    notes = {names.FIRST_POD: str(forged), names.ISSUED_BY: names.ISSUED_BY_API}
    uid = world.apply_session("s1", annotations=notes)
    await operator.until(lambda: world.pods(session=uid))
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"setup": "true"})
    await operator.until(lambda: starting["name"] not in names_of(world.pods()))


async def test_an_annotation_that_names_a_pod_which_the_pool_deletes_holds_nobody_up(
    world: World,
) -> None:
    """It may be on its way out for as long as its node is lost."""
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (old,) = (each["metadata"] for each in world.pods())
    world.cluster.ends_pods = False
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"setup": "true"})
    await operator.until(lambda: world.pool_is(1) and old["name"] not in names_of(world.pods()))
    assert world.cluster.peek(PODS, NAMESPACE, old["name"]), "it is gone: this shows nothing"
    forged = FirstPod(old["name"], old["uid"], NOW)
    notes = {names.FIRST_POD: str(forged), names.ISSUED_BY: names.ISSUED_BY_API}
    world.apply_session("s1", annotations=notes)
    await operator.until(lambda: world.phase("s1") == "Running")
    assert world.session("s1")["status"]["podUID"] != old["uid"]


def names_of(pods: list[dict[str, Any]]) -> set[str]:
    return {each["metadata"]["name"] for each in pods}


@pytest.mark.parametrize("text", ["", "a/b", "a/b/c", "a/b/2026-05-01T12:00:00", "a/b/c/d"])
def test_an_annotation_that_nobody_here_wrote_is_none(text: str) -> None:
    assert FirstPod.parse(text) is None


def test_a_first_pod_is_read_as_it_was_written() -> None:
    first = FirstPod("p", "u", NOW + timedelta(microseconds=1))
    assert FirstPod.parse(str(first)) == first


# --- in line --------------------------------------------------------------------------------------


async def in_line(world: World) -> tuple[Operator, JSON]:
    """s1 runs, and s2, which another process made for a warm pod, waits for its place."""
    world.apply_environment(pool={"size": 1, "maxSessions": 1})
    operator = world.start()
    world.apply_session("s1")
    await operator.until(lambda: world.served("s1") and world.pool_is(1))
    (warm,) = (each["metadata"] for each in world.pods(state=names.STATE_WARM))
    world.apply_session("s2", annotations=made_for(warm))
    await operator.until(lambda: world.condition(world.session("s2"))[1] == "Queued")
    return operator, warm


async def test_who_is_in_line_loses_nothing_with_its_pod_whatever_is_said_meanwhile(
    world: World,
) -> None:
    operator, warm = await in_line(world)
    missing = [{"path": "/x", "configMapKeyRef": {"name": "missing", "key": "x"}}]
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"files": missing})
    await operator.until(lambda: world.condition(world.session("s2"))[1] == "EnvironmentNotReady")
    assert world.condition(world.session("s2"), "HasPlace") == ("False", "Queued")
    world.cluster.delete(PODS, NAMESPACE, warm["name"])
    await operator.settle()
    assert world.phase("s2") == "Pending"
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"files": []})
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await operator.until(lambda: world.served("s2"))
    assert world.condition(world.session("s2"), "HasPlace") == ("True", "Claimed")


async def test_who_is_in_line_is_suspended_at_once(world: World) -> None:
    """The pod that it was made for goes first: who made it may be about to claim that."""
    operator, warm = await in_line(world)
    world.cluster.patch_spec(SESSIONS, NAMESPACE, "s2", {"state": "Suspended"})
    await operator.until(lambda: world.phase("s2") == "Suspended")
    assert warm["name"] not in names_of(world.pods())
    assert world.served("s1")


async def test_the_wait_in_line_is_not_counted_as_a_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the exec server says that it knew the session before, as when the answer to
    its claim was lost.
    """
    operator, warm = await in_line(world)
    claim, claims = world.sandboxes.claim, 0

    async def answers_late(pod: PodAddress, payload: ClaimPayload) -> bool:
        nonlocal claims
        claims += 1
        replayed = await claim(pod, payload)
        if claims == 1:
            raise LostError("no answer")
        return replayed

    monkeypatch.setattr(world.sandboxes, "claim", answers_late)
    world.clock.now += timedelta(hours=1)
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await operator.until(lambda: world.served("s2"))
    assert world.session("s2")["status"]["podUID"] == warm["uid"]
    assert claims == 2
    assert world.session("s2")["status"]["runningSince"] == precise(world.clock())


class Beside(Connection):
    """A way on which another operator gives s2 the last place just before this one claims a pod."""

    def __init__(self, world: World) -> None:
        super().__init__(world.cluster)
        self._world = world
        self.pod: JSON | None = None
        """The warm pod that s2 gets."""

    async def json_patch(self, resource: Any, *args: Any) -> JSON:
        if resource == PODS and self.pod:
            pod, self.pod = self.pod, None
            self._give(pod)
        return await super().json_patch(resource, *args)

    def _give(self, pod: JSON) -> None:
        uid = self._world.apply_session("s2")
        owner = {"kind": names.SESSION_KIND, "name": "s2", "uid": uid}
        label = f"/metadata/labels/{names.GROUP}~1"
        changes: list[JSON] = [
            {"op": "add", "path": f"{label}state", "value": names.STATE_CLAIMED},
            {"op": "add", "path": f"{label}session", "value": uid},
            {"op": "replace", "path": "/metadata/ownerReferences", "value": [owner]},
        ]
        self._cluster.json_patch(PODS, NAMESPACE, pod["name"], changes)
        self._world.sandboxes.claimed[pod["uid"]] = uid
        running = {"phase": "Running", "podName": pod["name"], "podUID": pod["uid"]}
        self._cluster.patch_status(SESSIONS, NAMESPACE, "s2", running)


async def test_a_pod_that_another_process_chose_gets_nobody_past_the_last_place(
    world: World,
) -> None:
    world.apply_environment(pool={"size": 2})
    beside = Beside(world)
    operator = world.start(beside)
    await operator.until(lambda: world.pool_is(2))
    first, other = (each["metadata"] for each in world.pods(state=names.STATE_WARM))
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"pool": {"maxSessions": 1}})
    await operator.settle()
    beside.pod = other
    world.apply_session("s1", annotations=made_for(first))
    await operator.until(lambda: world.condition(world.session("s1"))[1] == "Queued")
    assert world.condition(world.session("s1"), "HasPlace") == ("False", "Queued")
    assert world.served("s2")
    await operator.until(lambda: first["name"] not in names_of(world.pods()))
    await operator.settle()
    assert world.phase("s1") == "Pending"
