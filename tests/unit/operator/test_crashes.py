"""The operator dies, answers are lost, two operators race: what was asked for comes about once."""

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from cloister_operator import names
from cloister_operator.cluster.resources import ENVIRONMENTS, SESSIONS
from cloister_operator.plan.demand import SHRINK_AFTER
from support.fake_api import Connection, Fault, Write
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE

pytestmark = pytest.mark.long

MakeWorld = Callable[..., World]
POOL = 2


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses: these tests run hundreds of claims."""
    monkeypatch.setattr("cloister_operator.controller.warmer.DIAL_SECONDS", 0.2)
    monkeypatch.setattr("cloister_operator.controller.warmer._ANOTHER_LOOK", 0.01)
    monkeypatch.setattr("cloister_operator.controller.controller.REFILL_AFTER_SECONDS", 0.0)


def prepared(make_world: MakeWorld) -> World:
    """An Environment, and two Sessions of which one gets a Secret with its credentials."""
    world = make_world()
    world.apply_environment(pool={"size": POOL})
    world.apply_session("s1")
    world.apply_session("s2", annotations={names.ISSUED_BY: names.ISSUED_BY_API})
    return world


def converged(world: World) -> bool:
    problems = list(world.problems())
    assert problems == []
    return world.served("s1") and world.served("s2") and world.pool_is(POOL)


async def check(world: World, operator: Operator) -> None:
    """All that was asked for is there, once, and nothing else."""
    await operator.until(lambda: converged(world))
    await operator.settle()
    assert converged(world)
    assert len(world.pods()) == 2 + POOL
    assert world.leaks() == set()
    assert "s1-credentials" in world.secrets()


def at(n: int, fault: Fault) -> Callable[[int, Write], Fault | None]:
    return lambda count, _write: fault if count == n else None


async def writes_without_faults(make_world: MakeWorld) -> int:
    world = prepared(make_world)
    await check(world, world.start())
    return len(world.cluster.writes)


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
async def test_killed_at_any_write_the_next_operator_goes_on(
    make_world: MakeWorld, fault: Fault
) -> None:
    hit = 0
    most = await writes_without_faults(make_world)
    for n in range(1, most + 1):
        world = prepared(make_world)
        connection = Connection(world.cluster, at(n, fault))
        first = world.start(connection)
        await first.until(lambda c=connection, w=world: c.killed.is_set() or converged(w))  # type: ignore[misc]
        hit += connection.killed.is_set()
        await first.kill()
        await check(world, world.start())
    assert hit > most * 0.7, "the faults met nothing"


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.REFUSED])
async def test_any_answer_may_be_lost_or_an_error(make_world: MakeWorld, fault: Fault) -> None:
    most = await writes_without_faults(make_world)
    for n in range(1, most + 1):
        world = prepared(make_world)
        await check(world, world.start(Connection(world.cluster, at(n, fault))))


@pytest.mark.parametrize("seed", range(8))
async def test_many_answers_may_be_lost_and_many_operators_die(
    make_world: MakeWorld, seed: int
) -> None:
    rng = random.Random(seed)
    world = prepared(make_world)

    def fault(_count: int, _write: Write) -> Fault | None:
        return rng.choice(list(Fault)) if rng.random() < 0.15 else None

    for _ in range(6):
        connection = Connection(world.cluster, fault, rng)
        operator = world.start(connection)
        await operator.until(lambda c=connection, w=world: c.killed.is_set() or converged(w))  # type: ignore[misc]
        await operator.kill()
    await check(world, world.start())


@pytest.mark.parametrize("seed", range(25))
async def test_two_operators_at_once_share_nothing_out_twice(
    make_world: MakeWorld, seed: int
) -> None:
    """A rolling update runs two for a while."""
    rng = random.Random(seed)
    world = make_world()
    world.apply_environment(pool={"size": POOL})
    both = [world.start(Connection(world.cluster, jitter=rng)) for _ in range(2)]
    if seed % 2:
        await both[0].until(lambda: world.pool_is(POOL))
    wanted = [f"s{n}" for n in range(4)]
    for each in wanted:
        world.apply_session(each)

    def served() -> bool:
        problems = list(world.problems())
        assert problems == []
        return all(world.served(each) for each in wanted)

    await both[0].until(served)
    for operator in both:
        await operator.settle()
    # A pod that one made for want of one whose label the other wrote goes when pools shrink.
    for operator in both:
        await operator.advance(SHRINK_AFTER)
    await both[0].until(lambda: served() and world.pool_is(POOL))
    assert len(world.pods()) == len(wanted) + POOL
    assert world.leaks() == set()


@pytest.mark.parametrize("seed", range(10))
async def test_pools_that_shrink_and_change_take_no_pod_from_a_session(
    make_world: MakeWorld, seed: int
) -> None:
    rng = random.Random(seed)
    world = make_world()
    world.apply_environment(pool={"size": 4})
    operator = world.start(Connection(world.cluster, jitter=rng))
    await operator.until(lambda: world.pool_is(4))
    for n in range(4):
        world.apply_session(f"s{n}")
        changes = {"pool": {"size": rng.randrange(4)}, "setup": f"echo {rng.randrange(3)}"}
        world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", changes)

    def done() -> bool:
        problems = list(world.problems())
        assert problems == []
        return all(world.served(f"s{n}") for n in range(4))

    await operator.until(done)
    size = world.environment()["spec"]["pool"]["size"]
    await operator.until(lambda: world.pool_is(size))
    await operator.settle()
    assert done()
    assert world.leaks() == set()


async def test_sessions_that_come_and_go_leave_nothing(make_world: MakeWorld) -> None:
    rng = random.Random(7)
    world = make_world()
    world.apply_environment(pool={"size": 3})
    operator = world.start(Connection(world.cluster, jitter=rng))
    for n in range(30):
        world.apply_session(f"s{n}")
        if n >= 3:
            world.cluster.delete(SESSIONS, NAMESPACE, f"s{n - 3}")
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)
    await operator.until(lambda: all(world.served(f"s{n}") for n in (27, 28, 29)))
    await operator.until(lambda: world.pool_is(3))
    await operator.advance(timedelta(seconds=1))
    assert len(world.pods()) == 6
    assert list(world.problems()) == []
    assert world.leaks() == set()


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
@pytest.mark.parametrize("plural", ["environments/status", "secrets"])
async def test_killed_over_a_recipe_that_is_wanted_no_more(
    make_world: MakeWorld, plural: str, fault: Fault
) -> None:
    """At each write that a new recipe takes; then the Environment changes again."""
    world = make_world()
    world.apply_environment(pool={"size": 1})
    first = world.start()
    await first.until(lambda: world.pool_is(1))
    await first.settle()
    await first.kill()
    connection = Connection(
        world.cluster, lambda _, write: fault if write.plural == plural else None
    )
    second = world.start(connection)
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"setup": "true"})
    await connection.killed.wait()
    await second.kill()
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"setup": "false"})
    third = world.start()
    await third.until(lambda: world.pool_is(1) and not world.leaks())
    await third.settle()
    status = world.environment()["status"]
    assert status["recipes"] == [status["recipeHash"]]
