"""Pools of a running operator: what is lost, what grows, and who has to wait for whom."""

import copy
from datetime import timedelta

from cloister_operator import names
from cloister_operator.cluster.resources import PODS, SESSIONS, VOLUME_CLAIMS, Resource
from cloister_operator.errors import PermanentError, TransientError
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.operator_objects import JSON, NAMESPACE


class Deaf(Connection):
    """Hears nothing of the first pod that it makes, and cannot look it up either."""

    def __init__(self, world: World) -> None:
        self.asked: list[str] = []
        super().__init__(world.cluster, self._choose)

    def _choose(self, _count: int, write: Write) -> Fault | None:
        if (write.verb, write.plural) != ("create", "pods"):
            return None
        self.asked.append(write.name)
        return Fault.LOST if len(self.asked) == 1 else None

    async def get(self, resource: Resource, namespace: str, name: str) -> JSON:
        if resource == PODS and len(self.asked) == 1:
            raise TransientError("the API server answered 500")
        return await super().get(resource, namespace, name)


async def test_a_pod_of_unknown_fate_is_asked_for_under_its_own_name(world: World) -> None:
    world.apply_environment(pool={"size": 1})
    connection = Deaf(world)
    operator = world.start(connection)
    await operator.until(lambda: world.pool_is(1))
    await operator.settle()
    assert len(set(connection.asked)) == 1
    assert [pod["metadata"]["name"] for pod in world.pods()] == connection.asked[:1]


async def test_so_is_the_pod_of_a_session(world: World) -> None:
    world.apply_environment(pool={"size": 0})
    world.apply_session()
    connection = Deaf(world)
    operator = world.start(connection)
    await operator.until(lambda: world.served("s1"))
    assert len(set(connection.asked)) == 1


class NoVolumes(Connection):
    """A policy of the platform is against every volume claim."""

    denied = "ValidatingAdmissionPolicy 'small' denied the request: too large"

    async def create(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        if resource == VOLUME_CLAIMS and self.denied:
            raise PermanentError("Rejected", self.denied)
        return await super().create(resource, namespace, body)


async def test_pods_whose_volume_is_refused_are_made_ever_more_seldom(world: World) -> None:
    """They go at once, as somebody else could make a claim of their name."""
    world.apply_environment(workspace={"persistent": True}, pool={"size": 2})
    connection = NoVolumes(world.cluster)
    operator = world.start(connection)

    def made() -> int:
        return sum((each.verb, each.plural) == ("create", "pods") for each in world.cluster.writes)

    await operator.until(lambda: world.condition(world.environment(), "PoolReady")[1] == "Rejected")
    for seconds, count in ((0, 1), (9, 1), (2, 2), (15, 2), (6, 3)):
        await operator.advance(timedelta(seconds=seconds))
        assert made() == count
        assert world.pods() == []
        assert world.condition(world.environment())[1] == "Rejected"
    connection.denied = ""
    await operator.advance(timedelta(seconds=41))
    await operator.until(lambda: world.pool_is(2))


async def test_a_pool_grows_while_sessions_come_fast_and_shrinks_afterwards(world: World) -> None:
    world.apply_environment(pool={"size": 1, "maxSize": 4})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    for n in range(12):
        world.apply_session(f"s{n}")
    await operator.until(lambda: all(world.served(f"s{n}") for n in range(12)))
    await operator.until(lambda: world.pool_is(4))
    assert world.environment()["status"]["pool"]["wanted"] == 4
    await operator.advance(timedelta(minutes=1, seconds=30))
    assert world.pool_is(4), "it shrinks while it may be needed again"
    for _ in range(8):
        await operator.advance(timedelta(seconds=30))
    await operator.until(lambda: world.pool_is(1))


async def test_a_pool_never_grows_unless_it_was_told_how_far(world: World) -> None:
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    for n in range(12):
        world.apply_session(f"s{n}")
    await operator.until(lambda: all(world.served(f"s{n}") for n in range(12)))
    await operator.until(lambda: world.pool_is(1))
    assert world.environment()["status"]["pool"]["wanted"] == 1


async def test_a_flood_of_one_environment_keeps_nobody_else_waiting(world: World) -> None:
    world.apply_environment("flood", pool={"size": 0})
    world.apply_environment("calm", pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1, "calm") and world.pool_is(0, "flood"))
    for n in range(150):
        world.apply_session(f"f{n}", "flood")
    world.apply_session("c", "calm")
    await operator.until(lambda: world.served("c"))
    running = [
        each
        for each in world.cluster.all(SESSIONS, NAMESPACE)
        if (each.get("status") or {}).get("phase") == "Running"
    ]
    assert len(running) < 75, "the calm one came after half of the flood"
    await operator.until(lambda: world.phase("f149") == "Running")


async def test_a_long_line_is_served_in_order_with_few_writes(world: World) -> None:
    world.apply_environment(pool={"size": 1, "maxSessions": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    for n in range(30):
        world.apply_session(f"s{n:02}")
        world.clock.now += timedelta(seconds=1)
    await operator.until(lambda: world.served("s00"))
    await operator.until(
        lambda: (world.session("s29").get("status") or {}).get("queuePosition") == 29
    )
    for n in range(29):
        world.cluster.delete(SESSIONS, NAMESPACE, f"s{n:02}")
        await operator.until(lambda n=n: world.served(f"s{n + 1:02}"))  # type: ignore[misc]
    told = [
        each
        for each in world.cluster.writes
        if (each.plural, each.name) == ("sessions/status", "s29")
    ]
    assert len(told) <= 20, "each step of the line was written for the last one"


async def test_nothing_is_remembered_of_environments_that_are_not_there(world: World) -> None:
    """Whoever may make pods may label them at will, and pods outlive their Environment."""
    world.apply_environment("passing", pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1, "passing"))
    demand = operator.controller._environments._pools._demand
    assert demand.keys() == {(NAMESPACE, "passing")}
    stray = copy.deepcopy(world.pods()[0])
    stray["metadata"] |= {"name": "stray", "uid": "stray"}
    labels = stray["metadata"]["labels"] | {names.ENVIRONMENT_LABEL: "never-made"}
    for state in ("starting", "warm", "claimed"):
        version = str(int(stray["metadata"]["resourceVersion"]) + 1)
        stray["metadata"] |= {
            "labels": labels | {names.STATE_LABEL: state},
            "resourceVersion": version,
        }
        operator.context.pods.put(copy.deepcopy(stray))
    assert demand.keys() == {(NAMESPACE, "passing")}
    operator.context.doubted.add((NAMESPACE, "never-made"))
    operator.context.pods.remove(stray)
    await operator.until(lambda: not operator.context.doubted)


async def test_an_operator_that_has_yet_to_look_contradicts_nobody(world: World) -> None:
    """Two that know different things would write the status in turns, as fast as they can."""
    world.apply_environment(pool={"size": 1, "maxSessions": 1})
    operator = world.start()
    world.apply_session("s1")
    await operator.until(lambda: world.served("s1"))
    world.apply_session("s2")
    await operator.until(lambda: world.condition(world.session("s2"))[1] == "Queued")
    await operator.settle()
    before = len(world.cluster.writes)
    # As in a process that leads since now.
    context = operator.context
    context.resolved.clear()
    context.queue.add(("session", NAMESPACE, "s2"))
    await operator.until(lambda: not len(context.queue) and not context.queue._running)
    told = [each for each in world.cluster.writes[before:] if each.name == "s2"]
    assert not told
    assert world.condition(world.session("s2"))[1] == "Queued"


async def test_a_new_pod_is_no_news_for_the_other_environments(world: World) -> None:
    world.apply_environment("busy", pool={"size": 1})
    world.apply_environment("calm", pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1, "busy") and world.pool_is(1, "calm"))
    await operator.settle()
    world.apply_session("s1", "busy")
    await operator.until(lambda: world.served("s1") and world.pool_is(1, "busy"))
    await operator.settle()
    before = len(world.cluster.writes)
    operator.context.queue.add(("environment", NAMESPACE, "calm"))
    await operator.settle()
    assert [each for each in world.cluster.writes[before:] if each.name == "calm"] == []
