"""Quotas: what is refused says which one, and when to come again."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from cloister_operator.api.backend import NewSession
from cloister_operator.controller.backend import Backend
from cloister_operator.errors import QuotaError
from cloister_operator.plan.session import namespace_full
from cloister_operator.sessions_api.servicer import SessionsServicer
from cloister_operator.sessions_api.status import QuotaReached, from_error
from support.fake_api import Connection, FakeCluster
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE
from support.sessions_parts import made, not_ready

EXCEEDED = "exceeded quota: team-a, requested: pods=1, used: pods=9, limited: pods=9"


class Full(Connection):
    """A namespace whose quota allows no further pod, or nothing further that pods mount."""

    def __init__(self, cluster: FakeCluster, plural: str = "pods") -> None:
        super().__init__(cluster)
        self.full = True
        self.refused = 0
        self._plural = plural

    async def create(self, resource: Any, namespace: str, body: Any) -> Any:
        of_recipe = resource.plural == "secrets" and "recipe.json" in body.get("data", {})
        if self.full and resource.plural == self._plural and not of_recipe:
            self.refused += 1
            raise QuotaError(EXCEEDED, "team-a")
        return await super().create(resource, namespace, body)

    async def refuse_again(self, operator: Operator) -> None:
        """Wait for the next try."""
        before = self.refused
        await operator.until(lambda: self.refused > before)


def test_a_quota_of_kubernetes_is_resource_exhausted_with_its_name() -> None:
    failed = from_error(QuotaError(EXCEEDED, "team-a"))
    assert isinstance(failed, QuotaReached)
    assert (failed.reason, failed.metadata, failed.retry_after) == (
        "QUOTA_EXCEEDED",
        {"quota": "team-a"},
        5.0,
    )
    (violations,) = [
        each.violations
        for each in failed.details()
        if isinstance(each, error_details_pb2.QuotaFailure)
    ]
    assert [(each.subject, each.description) for each in violations] == [("team-a", EXCEEDED)]


@pytest.mark.parametrize("time_is_over", [True, False])
def test_a_session_that_waits_for_the_platforms_limit_names_its_value(time_is_over: bool) -> None:
    full = namespace_full(NAMESPACE, 2)
    waiting = made(phase="Pending", conditions=not_ready(full.reason, full.message))
    failed = SessionsServicer._not_running(waiting, time_is_over=time_is_over)
    assert isinstance(failed, QuotaReached)
    assert failed.metadata["quota"] == "sessions.maxPerNamespace"


@pytest.mark.parametrize("time_is_over", [True, False])
def test_a_session_that_waits_for_a_quota_says_so(time_is_over: bool) -> None:
    waiting = made(phase="Pending", conditions=not_ready("QuotaExceeded", EXCEEDED))
    failed = SessionsServicer._not_running(waiting, time_is_over=time_is_over)
    assert isinstance(failed, QuotaReached)
    assert failed.metadata["quota"] == "team-a"
    assert "it stays, and may run later" in failed.message


async def test_a_full_namespace_is_told_and_not_asked_in_a_hot_loop(world: World) -> None:
    connection = Full(world.cluster)
    world.apply_environment()
    world.apply_session()
    operator = world.start(connection)
    await operator.until(lambda: world.condition(world.session())[1] == "QuotaExceeded")
    pool = ("False", "QuotaExceeded")
    await operator.until(lambda: world.condition(world.environment(), "PoolReady") == pool)
    assert connection.refused < 20
    connection.full = False
    await operator.until(lambda: world.served("s1") and world.pool_is(1))


async def test_the_platforms_own_limit(make_world: Callable[..., World]) -> None:
    world = make_world(max_sessions_per_namespace=2)
    world.apply_environment()
    operator = world.start()
    backend = Backend(operator.context)
    await operator.until(lambda: world.pool_is(1))

    def new(request: str) -> NewSession:
        return NewSession(NAMESPACE, "py", "", request, "alice")

    first = await backend.create_session(new("1"))
    await backend.create_session(new("2"))
    with pytest.raises(QuotaError, match="allows 2") as caught:
        await backend.create_session(new("3"))
    assert caught.value.quota == "sessions.maxPerNamespace"
    assert (await backend.create_session(new("1"))).metadata.uid == first.metadata.uid
    await backend.delete_session(*first.key)
    await operator.until(lambda: backend.get_session(*first.key) is None)
    assert await backend.create_session(new("3"))


async def test_a_burst_of_calls_gets_no_more_than_the_limit(
    make_world: Callable[..., World],
) -> None:
    world = make_world(max_sessions_per_namespace=2)
    world.apply_environment()
    operator = world.start()
    backend = Backend(operator.context)
    await operator.until(lambda: world.pool_is(1))
    calls = [NewSession(NAMESPACE, "py", "", str(n), "alice") for n in range(20)]
    answers = await asyncio.gather(
        *(backend.create_session(each) for each in calls), return_exceptions=True
    )
    refused = [each for each in answers if isinstance(each, QuotaError)]
    assert len(refused) == 18
    assert len([each for each in answers if not isinstance(each, Exception)]) == 2
    assert not backend._coming


async def test_what_is_suspended_has_no_place_and_is_resumed_within_the_limit(
    make_world: Callable[..., World],
) -> None:
    world = make_world(max_sessions_per_namespace=1)
    world.apply_environment(workspace={"persistent": True}, pool={"size": 0})
    operator = world.start()
    backend = Backend(operator.context)
    await operator.until(lambda: operator.context.environments.get(NAMESPACE, "py"))
    first = await backend.create_session(NewSession(NAMESPACE, "py", "first", "1", "alice"))
    await operator.until(lambda: world.served("first"))
    await backend.set_state(NAMESPACE, "first", "Suspended")
    assert await backend.wait_settled(NAMESPACE, "first", 30)
    second = await backend.create_session(NewSession(NAMESPACE, "py", "second", "2", "alice"))
    with pytest.raises(QuotaError, match="allows 1"):
        await backend.set_state(*first.key, "Running")
    await backend.delete_session(*second.key)
    await operator.until(lambda: backend.get_session(*second.key) is None)
    assert await backend.set_state(*first.key, "Running")
    await operator.until(lambda: world.served("first"))


@pytest.mark.parametrize("plural", ["secrets", "persistentvolumeclaims"])
async def test_a_quota_of_what_pods_mount_is_told_for_as_long_as_it_is_used_up(
    world: World, plural: str
) -> None:
    """The pods are there, and wait: of themselves they say that they start, or have no volume."""
    world.apply_environment(workspace={"persistent": True}, pool={"size": 1})
    connection = Full(world.cluster, plural)
    operator = world.start(connection)

    def said() -> list[tuple[str, str]]:
        return [world.condition(world.environment(), each) for each in ("Ready", "PoolReady")]

    await operator.until(lambda: said() == [("False", "QuotaExceeded")] * 2)
    (pod,) = world.pods()
    for _ in range(3):
        await connection.refuse_again(operator)
        world.clock.now += timedelta(seconds=20)
        operator.look()
        await operator.until(lambda: not len(operator.context.queue))
        assert said() == [("False", "QuotaExceeded")] * 2
    assert [each["metadata"]["uid"] for each in world.pods()] == [pod["metadata"]["uid"]]
    connection.full = False
    await operator.until(lambda: world.pool_is(1))
    assert said() == [("True", "Available"), ("True", "PoolFilled")]
    assert operator.context.refusals == {}


async def test_a_session_whose_pod_may_not_have_its_identity_is_told_of_the_quota(
    world: World,
) -> None:
    world.apply_environment(pool={"size": 0})
    connection = Full(world.cluster, "secrets")
    operator = world.start(connection)
    world.apply_session()
    for _ in range(3):
        await operator.until(lambda: world.condition(world.session())[1] == "QuotaExceeded")
        await connection.refuse_again(operator)
        operator.look()
        await operator.until(lambda: not len(operator.context.queue))
    assert "team-a" in world.session()["status"]["conditions"][0]["message"]
    connection.full = False
    await operator.until(lambda: world.served("s1"))


def _waits(world: World, name: str) -> bool:
    return world.condition(world.session(name))[1] == "NamespaceFull"


async def test_kubectl_gets_no_more_sessions_than_the_api(make_world: Callable[..., World]) -> None:
    """They wait, in the order in which they were made, whatever their Environment."""
    world = make_world(max_sessions_per_namespace=2)
    world.apply_environment("py")
    world.apply_environment("go")
    operator = world.start()
    backend = Backend(operator.context)
    names = ["s1", "s2", "s3", "s4"]
    for each in names:
        world.apply_session(each, "go" if each == "s3" else "py")
        world.clock.now += timedelta(seconds=1)
    await operator.until(lambda: _waits(world, "s3") and _waits(world, "s4"))
    await operator.until(lambda: world.served("s1") and world.served("s2"))
    message = world.session("s3")["status"]["conditions"][0]["message"]
    assert "sessions.maxPerNamespace" in message
    assert "allows" in message
    with pytest.raises(QuotaError, match="allows 2"):
        await backend.create_session(NewSession(NAMESPACE, "py", "", "1", "alice"))
    await operator.settle()
    before = len(world.cluster.writes)
    for each in names:
        operator.context.queue.add(("session", NAMESPACE, each))
    await operator.settle()
    assert [each for each in world.cluster.writes[before:] if each.verb != "apply"] == []
    await backend.delete_session(NAMESPACE, "s1")
    await operator.until(lambda: world.served("s3"))
    assert _waits(world, "s4")


async def test_a_limit_that_is_lowered_ends_nothing(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.apply_environment()
    operator = world.start()
    world.apply_session("s1")
    world.apply_session("s2")
    await operator.until(lambda: world.served("s1") and world.served("s2"))
    await operator.kill()
    world.settings = world.settings.model_copy(update={"max_sessions_per_namespace": 1})
    operator = world.start()
    world.apply_session("s3")
    await operator.until(lambda: _waits(world, "s3"))
    assert world.served("s1")
    assert world.served("s2")
