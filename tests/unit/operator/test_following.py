"""Pods that are not usable yet are followed for as long as that is of use to somebody."""

import asyncio

import pytest

from cloister_operator.cluster.resources import PODS
from support.eventually import until
from support.fake_operator import Operator, World
from support.kept_sessions import KEPT, own_pod
from support.operator_objects import NAMESPACE


def follows(operator: Operator) -> bool:
    return bool(operator.controller._warmer._tasks)


async def test_a_pod_is_no_more_followed_once_its_session_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another operator has handed it over meanwhile: it has the session's name, and answers to that
    of the pod no more.
    """
    asked, probe = asyncio.Event(), world.sandboxes.probe

    async def never(*_: object) -> list[str]:
        asked.set()
        return await asyncio.Future()

    world.apply_environment(**KEPT, pool={"size": 0})
    world.apply_session()
    monkeypatch.setattr(world.sandboxes, "probe", never)
    one = world.start()
    await one.until(asked.is_set)
    monkeypatch.setattr(world.sandboxes, "probe", probe)
    other = world.start()
    await other.until(lambda: world.served("s1"))
    await one.settle()
    assert own_pod(world)["metadata"]["uid"] not in one.context.failures


async def test_a_pod_that_is_on_its_way_out_is_dialed_no_more(world: World) -> None:
    world.sandboxes.answering.clear()
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: follows(operator))
    world.cluster.ends_pods = False
    (pod,) = world.pods()
    await operator.until(lambda: operator.context.pods.all()[0].ip)
    world.cluster.delete(PODS, NAMESPACE, pod["metadata"]["name"])
    tasks = operator.controller._warmer._tasks
    await until(lambda: pod["metadata"]["uid"] not in tasks)


async def test_a_pod_that_is_gone_is_followed_by_nobody_who_saw_it_before(world: World) -> None:
    """A reconcile goes on with what it saw before it had to wait for an answer."""
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (seen,) = operator.context.pods.all()
    world.cluster.delete(PODS, NAMESPACE, seen.name)
    await operator.until(lambda: operator.context.pods.get(*seen.key) is None)
    operator.controller._warmer.ensure(seen)
    assert seen.uid not in operator.controller._warmer._tasks
