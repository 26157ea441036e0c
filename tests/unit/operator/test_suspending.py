"""Sessions that outlive their pods: suspended, resumed, and recovered from a pod that is lost."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    EVENTS,
    PODS,
    SECRETS,
    SESSIONS,
    VOLUME_CLAIMS,
)
from cloister_operator.plan.trials import FIRST_RETRY
from support.fake_api import Connection, Fault, Write
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]
MakeWorld = Callable[..., World]
KEPT: JSON = {"workspace": {"persistent": True, "size": "2Gi"}}
IDLE: JSON = {"lifecycle": {"onIdle": "Suspend", "idleTimeout": "10m", "maxLifetime": "24h"}}


async def running(world: World, pool: int = 1, **most: int) -> Operator:
    """An operator with a running session whose workspace persists."""
    world.apply_environment(**KEPT, **IDLE, pool={"size": pool, **most})
    operator = world.start()
    await operator.until(lambda: world.pool_is(pool))
    world.apply_session()
    await operator.until(lambda: world.served("s1") and world.pool_is(pool))
    await operator.settle()
    return operator


def claims(world: World) -> dict[str, JSON]:
    return {each["metadata"]["name"]: each for each in world.cluster.all(VOLUME_CLAIMS, NAMESPACE)}


def status(world: World, name: str = "s1") -> JSON:
    found: JSON = world.session(name)["status"]
    return found


def set_state(world: World, state: str) -> None:
    world.cluster.patch_spec(SESSIONS, NAMESPACE, "s1", {"state": state})


def suspended(world: World, reason: str = "Suspended") -> bool:
    session = world.session()
    return (
        world.phase() == "Suspended"
        and world.condition(session) == ("False", reason)
        and world.condition(session, "Suspended") == ("True", reason)
        and world.cluster.all(
            PODS, NAMESPACE, f"{names.SESSION_LABEL}={session['metadata']['uid']}"
        )
        == []
    )


def mounted(pod: JSON) -> str:
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "workspace")
    found: str = volume["persistentVolumeClaim"]["claimName"]
    return found


def own_pod(world: World) -> JSON:
    (found,) = world.pods(session=world.session()["metadata"]["uid"])
    return found


# --- the workspace's owner -----------------------------------------------------------------------


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


# --- suspend and resume --------------------------------------------------------------------------


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


def status_of_claims(world: World) -> list[str]:
    """Whose claims there are: a session's, or the pool's."""
    return [
        "session" if names.SESSION_LABEL in each["metadata"]["labels"] else "warm"
        for each in claims(world).values()
    ]


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


# --- the meters ----------------------------------------------------------------------------------


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


# --- pods that are lost --------------------------------------------------------------------------

OOM: JSON = {
    "phase": "Failed",
    "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}],
}


async def test_a_lost_pod_is_replaced_on_the_same_workspace(world: World) -> None:
    operator = await running(world)
    before = own_pod(world)
    world.clock.now += timedelta(minutes=3)
    world.cluster.set_pod_status(NAMESPACE, before["metadata"]["name"], **OOM)
    await operator.until(lambda: world.phase() == "Pending" or status(world)["restarts"] == 1)
    await operator.until(lambda: world.served("s1"))
    found = status(world)
    assert mounted(own_pod(world)) == mounted(before)
    assert (found["restarts"], found["recoveries"]) == (1, 1)
    assert found["earlierRunningMilliseconds"] == 180_000
    events = [each for each in world.cluster.all(EVENTS) if each["reason"] == "OOMKilled"]
    assert len(events) == 1
    assert world.cluster.peek(PODS, NAMESPACE, before["metadata"]["name"]) is None


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("DeletionByTaintManager", "NodeLost"),
        ("EvictionByEvictionAPI", "Evicted"),
        ("PreemptionByScheduler", "Evicted"),
        ("", "PodDeleted"),
    ],
)
async def test_why_a_pod_was_taken_away_is_told(world: World, reason: str, told: str) -> None:
    operator = await running(world)
    pod = status(world)["podName"]
    world.cluster.ends_pods = False
    if reason:
        world.cluster.set_pod_status(
            NAMESPACE,
            pod,
            conditions=[{"type": "DisruptionTarget", "status": "True", "reason": reason}],
        )
    world.cluster.delete(PODS, NAMESPACE, pod)
    await operator.until(lambda: world.condition(world.session())[1] == "WorkspaceInUse")
    told_of = {each["reason"] for each in world.cluster.all(EVENTS)}
    assert told in told_of
    world.cluster.ends_pods = True
    world.cluster.act()
    await operator.until(lambda: world.served("s1"))


async def test_a_session_that_loses_every_pod_fails_in_the_end(world: World) -> None:
    operator = await running(world)
    for lost in range(1, 9):
        world.cluster.set_pod_status(NAMESPACE, status(world)["podName"], **OOM)
        await operator.until(lambda n=lost: status(world)["recoveries"] == n)  # type: ignore[misc]
        if lost > 1:
            await operator.settle()
            assert world.phase() == "Pending"
            wait = min(timedelta(minutes=5), timedelta(seconds=2) * 2 ** (lost - 2))
            await operator.advance(wait - timedelta(seconds=1))
            assert world.pods(session=world.session()["metadata"]["uid"]) == []
            await operator.advance(timedelta(seconds=1))
        await operator.until(lambda: world.served("s1"))
    world.cluster.set_pod_status(NAMESPACE, status(world)["podName"], **OOM)
    await operator.until(lambda: world.phase() == "Failed")
    assert world.condition(world.session()) == ("False", "OOMKilled")
    assert status(world)["workspaceClaim"] in claims(world)


async def test_a_pod_that_lasted_makes_earlier_losses_count_no_more(world: World) -> None:
    operator = await running(world)
    for _ in range(3):
        world.clock.now += timedelta(minutes=10)
        restarts = status(world)["restarts"]
        world.cluster.set_pod_status(NAMESPACE, status(world)["podName"], **OOM)
        await operator.until(
            lambda n=restarts: status(world)["restarts"] == n + 1 and world.served("s1")  # type: ignore[misc]
        )
        assert status(world)["recoveries"] == 1


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


# --- the operator dies ---------------------------------------------------------------------------


def at(n: int, fault: Fault) -> Callable[[int, Write], Fault | None]:
    return lambda count, _write: fault if count == n else None


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister_operator.controller.warmer.DIAL_SECONDS", 0.2)
    monkeypatch.setattr("cloister_operator.controller.controller.REFILL_AFTER_SECONDS", 0.0)


@pytest.mark.usefixtures("in_a_hurry")
# Of those that ask to come again later one is enough: the other makes the test wait for real.
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(each, marks=() if each is Fault.LOST else pytest.mark.long)
        for each in Fault
        if each is not Fault.BUSY
    ],
)
async def test_whatever_happens_to_a_write_the_workspace_is_kept(
    make_world: MakeWorld, fault: Fault
) -> None:
    """A session is claimed, suspended and resumed, and loses its pod, while one write fails."""
    hit = n = 0
    while True:
        n += 1
        world = make_world()
        world.apply_environment(**KEPT, **IDLE, pool={"size": 1})
        world.apply_session()
        connection = Connection(world.cluster, at(n, fault))
        turns = Turns(world, world.start(connection), connection)
        await turns.until(lambda w=world: w.served("s1"))  # type: ignore[misc]
        claim = status(world)["workspaceClaim"]
        set_state(world, "Suspended")
        await turns.until(lambda w=world: suspended(w))  # type: ignore[misc]
        set_state(world, "Running")
        await turns.until(lambda w=world: w.served("s1"))  # type: ignore[misc]
        world.cluster.set_pod_status(NAMESPACE, status(world)["podName"], **OOM)
        restarts = status(world)["restarts"]
        await turns.until(
            lambda w=world, r=restarts: status(w)["restarts"] > r and w.served("s1")  # type: ignore[misc]
        )
        await turns.until(lambda w=world: w.pool_is(1))  # type: ignore[misc]
        await turns.operator.settle()
        assert status(world)["workspaceClaim"] == claim == mounted(own_pod(world))
        assert (status(world)["restarts"], status(world)["recoveries"]) == (2, 1)
        assert status_of_claims(world).count("session") == 1
        assert len(claims(world)) == 2
        assert world.leaks() == set()
        if connection._count < n:
            break
        hit += 1
    assert hit > 20, "the faults met nothing"


class Turns:
    """The operator that is alive: a killed one is followed by another."""

    def __init__(self, world: World, operator: Operator, connection: Connection) -> None:
        self.world = world
        self.operator = operator
        self._connection = connection

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait for what the operators bring about together."""

        def look() -> bool:
            problems = list(self.world.problems())
            assert problems == []
            return what()

        await self.operator.until(lambda: self._connection.killed.is_set() or look())
        if self._connection.killed.is_set():
            await self.operator.kill()
            self._connection = Connection(self.world.cluster)
            self.operator = self.world.start(self._connection)
            await self.operator.until(look)
