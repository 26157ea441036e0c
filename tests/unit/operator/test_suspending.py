"""Sessions that are suspended and resumed, and what they account for."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from cloister_operator import names
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    PODS,
    SECRETS,
    SESSIONS,
)
from cloister_operator.plan.session import REPLACED_AFTER
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.kept_sessions import (
    IDLE,
    KEPT,
    claims,
    identity_of,
    mounted,
    own_pod,
    running,
    set_state,
    status,
    status_of_claims,
    suspended,
)
from support.operator_objects import NAMESPACE

MakeWorld = Callable[..., World]


async def test_an_idle_session_is_suspended_and_keeps_its_workspace(world: World) -> None:
    operator = await running(world)
    uid, claim = world.session()["metadata"]["uid"], status(world)["workspaceClaim"]
    world.sandboxes.idle[uid] = timedelta(minutes=11)
    await operator.advance(timedelta(minutes=11))
    await operator.until(lambda: suspended(world, "IdleTimeout"))
    assert world.session()["spec"]["state"] == "Suspended"
    assert world.sandboxes.drained == [uid]
    found = status(world)
    assert claim in claims(world)
    assert {"podName", "endpoint", "runningSince"}.isdisjoint(found)
    assert (found["runningSeconds"], found["activeSeconds"]) == (660, 7)
    assert world.leaks() == set()


async def test_a_busy_session_is_not_suspended(world: World) -> None:
    operator = await running(world)
    uid = world.session()["metadata"]["uid"]
    world.sandboxes.idle[uid] = timedelta(minutes=11)
    world.sandboxes.busy.add(uid)
    await operator.advance(timedelta(minutes=11))
    assert world.sandboxes.asked == [uid]
    assert world.served("s1")
    assert world.session()["spec"].get("state") != "Suspended"


async def test_who_comes_back_before_the_suspension_goes_on(make_world: MakeWorld) -> None:
    """The operator dies once it has asked for the suspension; the session is used meanwhile."""
    world = make_world()
    operator = await running(world)
    uid, pod = world.session()["metadata"]["uid"], status(world)["podUID"]
    await operator.kill()

    def dies(_count: int, write: Write) -> Fault | None:
        return Fault.KILLED_AFTER if (write.verb, write.plural) == ("patch", "sessions") else None

    connection = Connection(world.cluster, dies)
    operator = world.start(connection)
    world.sandboxes.idle[uid] = timedelta(minutes=11)
    await operator.context.synced.wait()
    world.clock.now += timedelta(minutes=11)
    operator.look()
    await operator.until(connection.killed.is_set)
    await operator.kill()
    assert world.session()["spec"]["state"] == "Suspended"
    world.sandboxes.busy.add(uid)
    operator = world.start()
    await operator.until(lambda: world.session()["spec"]["state"] == "Running")
    await operator.settle()
    assert world.served("s1")
    assert status(world)["podUID"] == pod
    # What a person asks for is done, whatever runs.
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world))


async def test_an_idle_session_whose_workspace_is_not_kept_ends(world: World) -> None:
    """The Environment changed after its pod was made."""
    world.apply_environment(lifecycle={"idleTimeout": "10m"})
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", KEPT | IDLE)
    await operator.settle()
    world.sandboxes.idle[world.session()["metadata"]["uid"]] = timedelta(minutes=11)
    await operator.advance(timedelta(minutes=11))
    await operator.until(lambda: world.phase() == "Terminated")


async def test_a_resumed_session_has_a_new_pod_on_its_workspace(world: World) -> None:
    operator = await running(world)
    before, uid = own_pod(world), world.session()["metadata"]["uid"]
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world))
    await operator.advance(timedelta(hours=1))
    set_state(world, "Running")
    await operator.until(lambda: world.served("s1"))
    after, found = own_pod(world), status(world)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert mounted(after) == mounted(before)
    assert world.condition(world.session()) == ("True", "Resumed")
    assert world.condition(world.session(), "Suspended") == ("False", "Resumed")
    assert (found["restarts"], found["startedAt"]) == (1, "2026-05-01T12:00:00Z")
    assert "suspendedAt" not in found
    assert world.sandboxes.claimed[after["metadata"]["uid"]] == uid
    environment = after["spec"]["containers"][0]["env"]
    assert "CLOISTER_KEPT_ROOTS" in [each["name"] for each in environment]
    await operator.settle()
    assert world.leaks() == set()


async def test_each_pod_of_a_workspace_has_the_name_of_its_volume_claim_and_an_identity_of_its_own(
    world: World,
) -> None:
    """One name, one pod at a time; a Secret of before would be mounted, and never read again."""
    operator = await running(world, pool=0)
    identities = set()
    for _ in range(3):
        pod = own_pod(world)
        assert pod["metadata"]["name"] == mounted(pod)
        identities.add(identity_of(pod))
        # Nobody collects what belonged to the last pod.
        world.cluster.collects = False
        set_state(world, "Suspended")
        await operator.until(lambda: suspended(world))
        set_state(world, "Running")
        await operator.until(lambda: world.served("s1"))
    assert len(identities) == 3


async def test_a_pod_that_takes_the_place_of_one_that_never_ran_has_an_identity_of_its_own(
    world: World,
) -> None:
    """The Session's status says nothing of the one before."""
    world.cluster.starts_pods = False
    world.apply_environment(**KEPT, **IDLE, pool={"size": 0})
    uid = world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.pods(session=uid))
    stuck = own_pod(world)
    world.cluster.collects = False
    world.clock.now += REPLACED_AFTER
    operator.look()
    await operator.until(lambda: world.pods(session=uid) not in ([], [stuck]))
    assert own_pod(world)["metadata"]["name"] == stuck["metadata"]["name"]
    assert identity_of(own_pod(world)) != identity_of(stuck)
    world.cluster.starts_pods = True
    world.cluster.act()
    await operator.until(lambda: world.served("s1"))


async def test_files_of_the_session_are_sent_once(world: World) -> None:
    world.apply_environment(**KEPT)
    uid = world.apply_session(
        files=[
            {"path": "/workspace/a", "content": "1"},
            {"path": "/mnt/session/uploads/b", "content": "2"},
        ],
        env=[{"name": "WHO", "value": "me"}],
    )
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    sent = world.sandboxes.payloads[uid]
    assert [each.path for each in sent.files] == ["/workspace/a", "/mnt/session/uploads/b"]
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world))
    set_state(world, "Running")
    await operator.until(lambda: world.served("s1"))
    again = world.sandboxes.payloads[uid]
    assert again is not sent
    assert again.files == []
    assert again.env == {"WHO": "me"}


async def test_a_resumed_session_runs_the_environment_as_it_is_now(world: World) -> None:
    operator = await running(world)
    old = status(world)["recipeHash"]
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world))
    world.cluster.patch_spec(
        ENVIRONMENTS, NAMESPACE, "py", {"setup": "echo new", "workspace": {"persistent": False}}
    )
    await operator.until(lambda: world.environment()["status"]["recipeHash"] != old)
    set_state(world, "Running")
    await operator.until(lambda: world.served("s1"))
    assert status(world)["recipeHash"] == world.environment()["status"]["recipeHash"]
    assert mounted(own_pod(world)) == status(world)["workspaceClaim"]


async def test_credentials_of_a_session_stay_through_a_suspension(world: World) -> None:
    operator = await running(world)
    before = world.cluster.get(SECRETS, NAMESPACE, "s1-credentials")["data"]
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world))
    set_state(world, "Running")
    await operator.until(lambda: world.served("s1"))
    assert world.cluster.get(SECRETS, NAMESPACE, "s1-credentials")["data"] == before
    assert status(world)["credentialsSecretName"] == "s1-credentials"


async def test_a_session_that_would_lose_its_work_is_not_suspended(world: World) -> None:
    world.apply_environment()
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    set_state(world, "Suspended")
    declined = ("False", "WorkspaceNotPersistent")
    await operator.until(lambda: world.condition(world.session(), "Suspended") == declined)
    await operator.settle()
    assert world.served("s1")
    assert world.condition(world.session()) == ("True", "Claimed")
    world.cluster.writes.clear()
    await operator.advance(timedelta(seconds=1))
    assert world.cluster.writes == []


async def test_a_session_made_suspended_gets_its_pod_when_it_is_resumed(world: World) -> None:
    world.apply_environment(**KEPT, pool={"size": 1})
    world.apply_session(state="Suspended")
    operator = world.start()
    await operator.until(lambda: suspended(world) and world.pool_is(1))
    set_state(world, "Running")
    await operator.until(lambda: world.served("s1"))
    assert status(world)["restarts"] == 0
    assert world.condition(world.session()) == ("True", "Claimed")


async def test_suspended_sessions_take_nobodys_place_and_wait_for_one(world: World) -> None:
    operator = await running(world, maxSessions=1)
    world.clock.now += timedelta(seconds=1)
    world.apply_session("s2")
    await operator.until(lambda: world.condition(world.session("s2"))[1] == "Queued")
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world) and world.served("s2"))
    set_state(world, "Running")
    await operator.until(lambda: world.condition(world.session())[1] == "Queued")
    await operator.settle()
    assert world.phase() == "Pending"
    world.cluster.delete(SESSIONS, NAMESPACE, "s2")
    await operator.until(lambda: world.served("s1"))


async def test_the_next_pod_waits_until_the_last_has_let_go(world: World) -> None:
    operator = await running(world)
    old = own_pod(world)["metadata"]["name"]
    world.cluster.ends_pods = False
    set_state(world, "Suspended")
    await operator.until(lambda: world.phase() == "Suspended")
    set_state(world, "Running")
    await operator.until(lambda: world.condition(world.session())[1] == "WorkspaceInUse")
    await operator.settle()
    uid = world.session()["metadata"]["uid"]
    found = world.cluster.all(PODS, NAMESPACE, f"{names.SESSION_LABEL}={uid}")
    assert [each["metadata"]["name"] for each in found] == [old]
    world.cluster.ends_pods = True
    world.cluster.act()
    await operator.until(lambda: world.served("s1"))


async def test_a_suspended_session_ends_with_its_lifetime(world: World) -> None:
    operator = await running(world)
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world))
    await operator.advance(timedelta(hours=24))
    await operator.until(lambda: world.phase() == "Terminated")
    assert world.condition(world.session()) == ("False", "MaxLifetime")
    assert status(world)["runningSeconds"] == 0
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: world.phase() == "")
    await operator.settle()
    assert status_of_claims(world) == ["warm"]


@pytest.mark.parametrize("phase", ["Running", "Suspended", "Resuming", "Recovering"])
async def test_a_session_deleted_in_any_phase_leaves_nothing(world: World, phase: str) -> None:
    operator = await running(world, pool=0)
    if phase in ("Suspended", "Resuming"):
        set_state(world, "Suspended")
        await operator.until(lambda: suspended(world))
    world.sandboxes.answering.clear()
    if phase == "Resuming":
        set_state(world, "Running")
        await operator.until(lambda: world.condition(world.session())[1] == "Starting")
    if phase == "Recovering":
        world.cluster.set_pod_status(NAMESPACE, status(world)["podName"], phase="Failed")
        await operator.until(lambda: world.phase() == "Pending")
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await operator.until(lambda: world.pods() == [] and claims(world) == {})
    await operator.settle()
    assert world.leaks() == set()


async def test_time_is_counted_to_the_second_through_suspensions_and_restarts(
    world: World,
) -> None:
    operator = await running(world)
    uid = world.session()["metadata"]["uid"]
    for run in range(1, 4):
        world.clock.now += timedelta(milliseconds=600)
        await operator.kill()
        operator = world.start()
        await operator.advance(timedelta(seconds=60))
        world.sandboxes.active[uid] = timedelta(seconds=10, milliseconds=400)
        set_state(world, "Suspended")
        await operator.until(lambda: suspended(world))
        found = status(world)
        assert found["runningSeconds"] == int(60.6 * run)
        assert found["activeSeconds"] == int(10.4 * run + 1e-6)
        await operator.advance(timedelta(hours=1))
        set_state(world, "Running")
        await operator.until(lambda: world.served("s1"))
        await operator.settle()
    assert status(world)["restarts"] == 3
