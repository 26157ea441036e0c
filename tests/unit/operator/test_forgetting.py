"""What a process knows of objects goes with them, however their end and its own calls cross."""

import asyncio
from datetime import timedelta

import pytest

from cloister_operator.api.pod import PodView
from cloister_operator.cluster.resources import ENVIRONMENTS, SESSIONS
from cloister_operator.controller import controller, pods
from cloister_operator.controller.context import Context
from cloister_operator.plan.demand import WINDOWS, Demand
from cloister_operator.plan.failure import Failure
from support.fake_api import Connection
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE, NOW


@pytest.fixture
async def standing(world: World, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """An operator with a warm pod and a session, which lists everything again all the time."""
    monkeypatch.setattr(controller, "RESYNC", timedelta(milliseconds=10))
    world.apply_environment(pool={"size": 1})
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.served("s1") and world.pool_is(1))
    return operator


async def test_what_was_found_out_about_a_pod_just_as_it_went_is_forgotten(
    world: World, standing: Operator
) -> None:
    context = standing.context
    (warm,) = world.pods(state="warm")
    for uids in (context.usable, context.reserved, context.identified, context.made):
        uids.add("gone")
    context.placed.add("gone")
    context.met.add("gone")
    context.failures["gone"] = context.refusals["gone"] = Failure("PodFailed", "it ended")
    context.doubted.add((NAMESPACE, "gone"))
    await standing.until(
        lambda: (
            not (
                context.reserved & {"gone"}
                or context.placed
                or context.met
                or context.failures
                or context.refusals
                or context.doubted
            )
        )
    )
    here = warm["metadata"]["uid"]
    assert here in context.usable & context.identified & context.made
    assert "gone" not in context.usable | context.identified | context.made


async def test_a_pod_that_is_being_made_is_no_stranger(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was told of it yet; its maker counts it as its own."""
    identify = pods.ensure_identity

    async def looked_through(context: Context, pod: PodView) -> None:
        context.forget_strangers()
        await identify(context, pod)

    monkeypatch.setattr(pods, "ensure_identity", looked_through)
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (warm,) = world.pods(state="warm")
    assert warm["metadata"]["uid"] in operator.context.made


async def test_what_was_noted_of_a_session_just_as_it_went_is_forgotten(
    world: World, standing: Operator
) -> None:
    starts = standing.controller._sessions._starts
    (session,) = standing.context.sessions.all()
    (pod,) = standing.context.pods.group(("session", NAMESPACE, session.metadata.uid))
    starts.waits(session)
    starts.refused(session)
    await standing.until(lambda: standing.context.queue.progress > 20)
    assert starts._refused
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await standing.until(lambda: not standing.context.sessions.all())
    starts.waits(session)
    starts.warm(session)
    starts.cold(session)
    starts.silent(session, pod)
    known = (starts._since, starts._warm, starts._cold, starts._refused, starts._silent)
    await standing.until(lambda: not any(known))


class Standby(Operator):
    """One that does not lead."""

    async def _run(self) -> None:
        begin = self.world.cluster.version
        async with asyncio.TaskGroup() as group:
            group.create_task(self.controller.mirror())
            await self.context.synced.wait()
            group.create_task(self._observe(ENVIRONMENTS, begin))


async def test_who_does_not_lead_forgets_the_pools_of_environments_that_are_gone(
    world: World,
) -> None:
    world.apply_environment(pool={"size": 1})
    leader = world.start()
    standby = Standby(world, Connection(world.cluster))
    world.operators.append(standby)
    demand = standby.controller._environments._pools._demand
    await leader.until(lambda: world.pool_is(1))
    await standby.until(lambda: demand)
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    await standby.until(lambda: not standby.context.environments.all())
    assert not demand


def test_claims_that_count_no_more_are_not_kept_until_somebody_asks() -> None:
    demand = Demand()
    for second in range(1000):
        demand.claimed(NOW + timedelta(seconds=second))
    assert len(demand._claims) <= WINDOWS[-1].total_seconds()
