"""Persistent workspaces: whose their volumes are, and what becomes of a session without its own."""

from datetime import timedelta

from cloister_operator import names
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    EVENTS,
    SESSIONS,
    VOLUME_CLAIMS,
)
from cloister_operator.plan.trials import FIRST_RETRY
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.kept_sessions import (
    IDLE,
    KEPT,
    claims,
    mounted,
    own_pod,
    running,
    set_state,
    status,
    suspended,
)
from support.operator_objects import NAMESPACE


async def test_a_claimed_workspace_is_the_sessions_before_the_session_runs(world: World) -> None:
    operator = await running(world)
    pod, session = own_pod(world), world.session()
    claim = claims(world)[mounted(pod)]
    assert status(world)["workspaceClaim"] == claim["metadata"]["name"] == pod["metadata"]["name"]
    assert [each["uid"] for each in claim["metadata"]["ownerReferences"]] == [
        session["metadata"]["uid"]
    ]
    adopted = world.cluster.writes.index(Write("patch", "persistentvolumeclaims", mounted(pod)))
    ran = world.cluster.writes.index(Write("patch", "sessions/status", "s1"))
    assert adopted < ran
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await operator.until(lambda: len(world.pods()) == 1 and len(claims(world)) == 1)


async def test_a_claim_through_the_sessions_api_costs_three_writes(world: World) -> None:
    operator = await running(world)
    world.cluster.writes.clear()
    world.apply_session("s2", annotations={names.ISSUED_BY: names.ISSUED_BY_API})
    await operator.until(lambda: world.served("s2"))
    until = world.cluster.writes.index(Write("patch", "sessions/status", "s2"))
    pod = status(world, "s2")["podName"]
    assert set(world.cluster.writes[: until + 1]) == {
        Write("patch", "pods", pod),
        Write("patch", "persistentvolumeclaims", pod),
        Write("patch", "sessions/status", "s2"),
    }
    assert until == 2


async def test_a_workspace_whose_claim_changes_meanwhile_costs_no_pod(world: World) -> None:
    """The API server gives up when an object changes again and again: that is no refusal."""
    conflicts = iter([Fault.CONFLICT])

    def fault(_count: int, write: Write) -> Fault | None:
        adopts = (write.verb, write.plural) == ("patch", "persistentvolumeclaims")
        return next(conflicts, None) if adopts else None

    world.apply_environment(**KEPT, **IDLE, pool={"size": 1})
    operator = world.start(Connection(world.cluster, fault))
    await operator.until(lambda: world.pool_is(1))
    (warm,) = world.pods(state="warm")
    world.apply_session()
    await operator.until(lambda: world.served("s1"))
    assert list(conflicts) == []
    assert status(world)["podUID"] == warm["metadata"]["uid"]


async def test_a_claim_that_somebody_made_before_is_no_workspace(world: World) -> None:
    planted: list[str] = []

    def fault(_count: int, write: Write) -> Fault | None:
        if (write.verb, write.plural) == ("create", "persistentvolumeclaims") and not planted:
            planted.append(write.name)
            world.cluster.create(VOLUME_CLAIMS, NAMESPACE, {"metadata": {"name": write.name}})
        return None

    world.apply_environment(**KEPT, **IDLE, pool={"size": 1})
    operator = world.start(Connection(world.cluster, fault))
    await operator.until(lambda: world.condition(world.environment())[1] == "VolumeNotBound")
    assert world.pods() == []
    await operator.advance(FIRST_RETRY)
    await operator.until(lambda: world.pool_is(1))
    (warm,) = world.pods(state="warm")
    assert mounted(warm) != planted[0]


async def test_a_pools_workspace_goes_with_its_pod(world: World) -> None:
    operator = await running(world, pool=2)
    assert len(claims(world)) == 3
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"pool": {"size": 0}})
    await operator.until(lambda: list(claims(world)) == [status(world)["workspaceClaim"]])
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    await operator.settle()
    assert world.served("s1")
    assert list(claims(world)) == [status(world)["workspaceClaim"]]


async def test_a_session_without_a_warm_pod_has_a_claim_of_its_own(world: World) -> None:
    operator = await running(world, pool=0)
    pod = own_pod(world)
    assert mounted(pod) == names.workspace_claim("s1", world.session()["metadata"]["uid"])
    assert claims(world)[mounted(pod)]["spec"]["resources"]["requests"]["storage"] == "2Gi"
    await operator.kill()
    assert len(claims(world)) == 1


async def test_a_session_whose_volume_is_gone_fails(world: World) -> None:
    operator = await running(world)
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world))
    world.cluster.vanish(VOLUME_CLAIMS, NAMESPACE, status(world)["workspaceClaim"])
    set_state(world, "Running")
    await operator.until(lambda: world.phase() == "Failed")
    assert world.condition(world.session()) == ("False", "VolumeLost")


async def test_a_volume_that_is_not_to_be_had_is_told_with_the_events_sentence(
    world: World,
) -> None:
    world.cluster.kubelet = False
    world.apply_environment(**KEPT, pool={"size": 0})
    uid = world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.condition(world.session())[1] == "Starting")
    claim = names.workspace_claim("s1", uid)
    event = {
        "metadata": {"name": "e1"},
        "involvedObject": {"kind": "PersistentVolumeClaim", "name": claim},
        "reason": "ProvisioningFailed",
        "message": 'storageclass.storage.k8s.io "fast" not found',
        "lastTimestamp": "2026-05-01T12:00:01Z",
    }
    world.cluster.create(EVENTS, NAMESPACE, event)
    await operator.advance(timedelta(seconds=10))
    await operator.until(lambda: world.condition(world.session())[1] == "VolumeNotBound")
    message = world.session()["status"]["conditions"][0]["message"]
    assert '"fast" not found' in message
    assert claim in message
