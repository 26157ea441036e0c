"""How sessions end, by themselves and with their pods, and what goes with them."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    NAMESPACES,
    PODS,
    SECRETS,
    SESSIONS,
)
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]
MakeWorld = Callable[..., World]


async def running(world: World, **lifecycle: str) -> Any:
    """An operator with one running session."""
    world.apply_environment(lifecycle=lifecycle)
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.served("s1") and world.pool_is(1))
    await operator.settle()
    return operator


def ended(world: World, phase: str, reason: str) -> bool:
    found = world.session()
    return (
        world.phase() == phase
        and world.condition(found) == ("False", reason)
        and world.pods(session=found["metadata"]["uid"]) == []
    )


async def test_an_idle_session_ends_only_when_its_exec_server_says_so(world: World) -> None:
    operator = await running(world, idleTimeout="10m")
    uid = world.session()["metadata"]["uid"]
    await operator.advance(timedelta(minutes=9))
    assert world.sandboxes.asked == []
    world.sandboxes.idle[uid] = timedelta(minutes=2)
    await operator.advance(timedelta(minutes=2))
    assert world.sandboxes.asked == [uid]
    assert world.phase() == "Running"
    assert world.session()["status"]["lastActivityTime"] == "2026-05-01T12:09:00Z"
    assert world.session()["status"]["runningSeconds"] == 660
    assert world.session()["status"]["activeSeconds"] == 7
    world.sandboxes.busy.add(uid)
    await operator.advance(timedelta(minutes=10))
    assert world.phase() == "Running"
    world.sandboxes.busy.clear()
    world.sandboxes.idle[uid] = timedelta(minutes=10)
    await operator.advance(timedelta(minutes=10))
    await operator.until(lambda: ended(world, "Terminated", "IdleTimeout"))
    assert world.session()["status"]["runningSeconds"] == 31 * 60


async def test_being_idle_for_a_part_of_a_second_is_asked_once(world: World) -> None:
    operator = await running(world, idleTimeout="10m")
    uid = world.session()["metadata"]["uid"]
    world.sandboxes.idle[uid] = timedelta(minutes=9, seconds=59, milliseconds=500)
    world.clock.now += timedelta(milliseconds=300)
    await operator.advance(timedelta(minutes=10))
    assert world.sandboxes.asked == [uid]
    assert world.phase() == "Running"


async def test_a_session_ends_with_its_lifetime(world: World) -> None:
    operator = await running(world, maxLifetime="1h", idleTimeout="2h")
    uid = world.session()["metadata"]["uid"]
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: ended(world, "Terminated", "MaxLifetime"))
    status = world.session()["status"]
    assert (status["endedAt"], status["runningSeconds"]) == ("2026-05-01T13:00:00Z", 3600)
    assert (world.sandboxes.asked, status["activeSeconds"]) == ([uid], 7)


async def test_a_pod_that_does_not_answer_holds_no_end_up(world: World) -> None:
    operator = await running(world, maxLifetime="1h", idleTimeout="2h")
    world.sandboxes.answering.clear()
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: ended(world, "Terminated", "MaxLifetime"))
    assert world.session()["status"]["runningSeconds"] == 3600


def disrupted(reason: str) -> JSON:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason}


TERMINATED = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"phase": "Failed", "containerStatuses": [{"state": TERMINATED}]}, "OOMKilled"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}, "Evicted"),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": 'Usage of EmptyDir volume "workspace" exceeds the limit "1Gi".',
            },
            "DiskFull",
        ),
        ({"phase": "Failed", "reason": "Terminated", "message": "node shutdown"}, "NodeLost"),
        ({"phase": "Failed", "conditions": [disrupted("DeletionByPodGC")]}, "NodeLost"),
        (
            {
                "phase": "Failed",
                "containerStatuses": [{"state": {"terminated": {"exitCode": 1}}}],
            },
            "PodEnded",
        ),
        ({"phase": "Succeeded"}, "PodEnded"),
    ],
)
async def test_a_session_fails_with_its_pod_and_says_why(
    world: World, status: JSON, reason: str
) -> None:
    operator = await running(world)
    pod = world.session()["status"]["podName"]
    world.cluster.set_pod_status(NAMESPACE, pod, **status)
    await operator.until(lambda: ended(world, "Failed", reason))
    await operator.settle()
    assert world.cluster.peek(PODS, NAMESPACE, pod) is None


async def test_a_session_whose_pod_is_deleted_fails(world: World) -> None:
    operator = await running(world)
    world.cluster.delete(PODS, NAMESPACE, world.session()["status"]["podName"])
    await operator.until(lambda: ended(world, "Failed", "PodDeleted"))


async def test_a_session_whose_pod_went_while_no_operator_ran_fails(world: World) -> None:
    operator = await running(world)
    await operator.kill()
    world.cluster.vanish(PODS, NAMESPACE, world.session()["status"]["podName"])
    again = world.start()
    await again.until(lambda: ended(world, "Failed", "PodDeleted"))


async def test_a_session_whose_pod_cannot_be_set_up_fails(world: World) -> None:
    world.sandboxes.setup_problem = "setup ended with code 3"
    world.apply_environment(pool={"size": 0})
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: ended(world, "Failed", "SetupFailed"))
    await operator.settle()
    assert world.pods() == []


async def test_a_deleted_session_takes_its_pod_along(world: World) -> None:
    operator = await running(world)
    world.cluster.collects = False
    pod = world.session()["status"]["podName"]
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await operator.until(lambda: world.cluster.peek(PODS, NAMESPACE, pod) is None)
    world.cluster.collects = True
    await operator.advance(timedelta(seconds=1))
    world.cluster.act()
    await operator.settle()
    assert world.leaks() == set()


async def test_a_session_that_somebodys_finalizer_keeps_has_no_pod(world: World) -> None:
    operator = await running(world)
    world.cluster.collects = False
    pod = world.session()["status"]["podName"]
    await operator.kill()
    gone = {"op": "add", "path": "/metadata/deletionTimestamp", "value": "2026-01-01T00:00:00Z"}
    world.cluster.json_patch(SESSIONS, NAMESPACE, "s1", [gone])
    failing = iter([Fault.REFUSED] * 3)

    def fault(_: int, write: Write) -> Fault | None:
        return next(failing, None) if (write.verb, write.plural) == ("delete", "pods") else None

    operator = world.start(Connection(world.cluster, fault))
    await operator.until(lambda: world.cluster.peek(PODS, NAMESPACE, pod) is None)


async def test_an_ended_session_is_kept_for_a_while_and_then_deleted(make_world: MakeWorld) -> None:
    world = make_world(ended_session_ttl_seconds=600.0)
    operator = await running(world, maxLifetime="1h", idleTimeout="2h")
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: ended(world, "Terminated", "MaxLifetime"))
    await operator.advance(timedelta(seconds=599))
    assert world.phase() == "Terminated"
    await operator.advance(timedelta(seconds=1))
    await operator.until(lambda: world.phase() == "")
    await operator.settle()
    assert world.leaks() == set()


async def test_an_ended_session_stays_ended_whatever_happens(world: World) -> None:
    operator = await running(world, maxLifetime="1h")
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: ended(world, "Terminated", "MaxLifetime"))
    world.cluster.patch_spec(SESSIONS, NAMESPACE, "s1", {"lifecycle": {"maxLifetime": "30m"}})
    await operator.settle()
    await operator.kill()
    again = world.start()
    await again.settle()
    assert ended(world, "Terminated", "MaxLifetime")


async def test_the_same_session_made_anew_gets_credentials_of_its_own(world: World) -> None:
    """The Secret of the deleted one has the same name, and is collected a little later."""
    operator = await running(world)
    before = world.cluster.get(SECRETS, NAMESPACE, "s1-credentials")["data"]["tls.crt"]
    world.cluster.collects = False
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    world.cluster.writes.clear()
    uid = world.apply_session()
    attempt = Write("create", "secrets", "s1-credentials")
    await operator.until(lambda: attempt in world.cluster.writes)
    world.cluster.collects = True
    world.cluster.act()
    await operator.until(lambda: world.served("s1"))
    await operator.settle()
    secret = world.cluster.get(SECRETS, NAMESPACE, "s1-credentials")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == uid
    assert secret["data"]["tls.crt"] != before


async def test_a_secret_of_somebody_else_is_left_alone(world: World) -> None:
    own = {"metadata": {"name": "s1-credentials"}, "data": {"mine": "eA=="}}
    world.cluster.create(SECRETS, NAMESPACE, own)
    world.apply_environment()
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.phase() == "Failed")
    assert "s1-credentials" in world.session()["status"]["conditions"][0]["message"]
    assert world.cluster.get(SECRETS, NAMESPACE, "s1-credentials")["data"] == own["data"]
    await operator.settle()
    assert world.pods(state="claimed") == []


async def test_a_pod_of_another_namespace_is_nobodys_here(make_world: MakeWorld) -> None:
    """Whoever may make pods there could otherwise get the files and variables of a session here."""
    world = make_world(sandbox_namespaces=(NAMESPACE, "other"))
    world.cluster.create(NAMESPACES, "", {"metadata": {"name": "other"}})
    world.apply_environment(pool={"size": 0})
    uid = world.apply_session()
    labels = {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.ENVIRONMENT_LABEL: "py",
        names.STATE_LABEL: "claimed",
        names.SESSION_LABEL: uid,
    }
    intruder = {"metadata": {"name": "intruder", "labels": labels}, "spec": {"volumes": []}}
    world.cluster.create(PODS, "other", intruder)
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    await operator.settle()
    assert world.cluster.peek(PODS, "other", "intruder") is not None


async def test_a_pods_label_deletes_no_secret(world: World) -> None:
    """A pod that somebody else made names a recipe that is no recipe."""
    world.cluster.create(SECRETS, NAMESPACE, {"metadata": {"name": "py-password"}})
    world.apply_environment()
    labels = {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.ENVIRONMENT_LABEL: "py",
        names.STATE_LABEL: "starting",
        names.RECIPE_LABEL: "password",
    }
    intruder = {"metadata": {"name": "intruder", "labels": labels}, "spec": {"volumes": []}}
    world.cluster.create(PODS, NAMESPACE, intruder)
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    await operator.until(lambda: world.cluster.peek(PODS, NAMESPACE, "intruder") is None)
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"setup": "echo new"})
    await operator.until(lambda: len(world.pods()) == 1 and world.pool_is(1))
    await operator.settle()
    assert "py-password" in world.secrets()


async def test_a_server_that_is_away_for_a_while_costs_nothing(world: World) -> None:
    operator = await running(world)
    operator.connection.away = True
    world.apply_session("s2")
    operator.look()
    for _ in range(50):
        await asyncio.sleep(0)
    operator.connection.away = False
    await operator.controller._list()
    await operator.until(lambda: world.served("s2") and world.served("s1"))
    await operator.until(lambda: world.pool_is(1))
    assert list(world.problems()) == []
