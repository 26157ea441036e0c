"""Sessions whose pods are lost, or whose operator dies: their workspaces are kept."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from cloister_operator import names
from cloister_operator.api.pod import view
from cloister_operator.cluster.resources import (
    EVENTS,
    PODS,
    VOLUME_CLAIMS,
)
from cloister_operator.controller import volumes
from support.fake_api import Connection, Fault, Write
from support.fake_operator import Operator, World
from support.kept_sessions import (
    IDLE,
    KEPT,
    OOM,
    claims,
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
    assert own_pod(world)["metadata"]["name"] == before["metadata"]["name"] == mounted(before)
    assert found["podUID"] != before["metadata"]["uid"]


async def test_a_pod_without_the_workspace_is_not_the_sessions_whatever_its_label_says(
    world: World,
) -> None:
    """Another operator claimed it, which had yet to hear of the workspace; and it failed."""
    operator = await running(world)
    world.cluster.starts_pods = False
    world.cluster.set_pod_status(NAMESPACE, status(world)["podName"], **OOM)
    await operator.until(lambda: status(world)["reason"] == "Starting")
    lost, (warm,) = status(world), world.pods(state=names.STATE_WARM)
    label = f"/metadata/labels/{names.GROUP}~1"
    taken = [
        {"op": "replace", "path": f"{label}state", "value": names.STATE_CLAIMED},
        {"op": "add", "path": f"{label}session", "value": world.session()["metadata"]["uid"]},
    ]
    mine = claims(world)[mounted(own_pod(world))]["metadata"]["ownerReferences"]
    adopted = {"op": "replace", "path": "/metadata/ownerReferences", "value": mine}
    world.cluster.json_patch(VOLUME_CLAIMS, NAMESPACE, mounted(warm), [adopted])
    world.cluster.json_patch(PODS, NAMESPACE, warm["metadata"]["name"], taken)
    world.cluster.set_pod_status(NAMESPACE, warm["metadata"]["name"], **OOM)
    await operator.until(
        lambda: world.cluster.peek(PODS, NAMESPACE, warm["metadata"]["name"]) is None
    )
    await operator.settle()
    assert mounted(warm) not in claims(world)
    assert (status(world)["podUID"], status(world)["recoveries"]) == (lost["podUID"], 1)
    world.cluster.starts_pods = True
    world.cluster.act()
    await operator.until(lambda: world.served("s1"))
    assert status(world)["workspaceClaim"] == mounted(own_pod(world)) == lost["workspaceClaim"]


async def test_whose_pod_somebody_labels_as_anothers_keeps_the_workspace(world: World) -> None:
    operator = await running(world, pool=0)
    other = world.apply_session("s2")
    await operator.until(lambda: world.served("s2"))
    (pod,) = world.pods(session=other)
    before = claims(world)[mounted(pod)]["metadata"]["ownerReferences"]
    session = operator.context.sessions.get(NAMESPACE, "s1")
    assert session is not None
    await volumes.give_back(operator.context, session, view(pod))
    assert claims(world)[mounted(pod)]["metadata"]["ownerReferences"] == before
    assert [each["uid"] for each in before] == [other]


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
