"""Whose the volume claim of a pool's pod is, for an operator that looked at the pod long ago."""

from collections.abc import Callable
from typing import Any

import pytest

from cloister_operator.api.pod import PodView, view
from cloister_operator.cluster.resources import PODS, VOLUME_CLAIMS
from cloister_operator.controller import pods
from cloister_operator.errors import ConflictError, PermanentError
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE

KEPT: dict[str, Any] = {"workspace": {"persistent": True, "size": "2Gi"}}


@pytest.fixture
async def seen(world: World) -> tuple[Operator, PodView]:
    """A pod as it was before a session took it."""
    world.apply_environment(**KEPT, pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (warm,) = world.pods(state="warm")
    return operator, view(warm)


def _stolen(world: World, pod: PodView) -> None:
    """Somebody else's claim has the name of the pod's."""
    world.cluster.vanish(VOLUME_CLAIMS, NAMESPACE, pod.claim)
    world.cluster.create(VOLUME_CLAIMS, NAMESPACE, {"metadata": {"name": pod.claim}})


async def test_a_pod_is_not_deleted_under_the_session_that_took_its_claim_along(
    world: World, seen: tuple[Operator, PodView]
) -> None:
    """The claim was being made, slowly, all the while."""
    operator, before = seen
    world.apply_session()
    await operator.until(lambda: world.served("s1"))
    assert world.session()["status"]["podUID"] == before.uid
    await pods.ensure_identity(operator.context, before)
    await operator.settle()
    assert world.served("s1")
    assert world.session()["status"]["podUID"] == before.uid


async def test_a_pod_with_somebody_elses_claim_is_deleted(
    world: World, seen: tuple[Operator, PodView]
) -> None:
    operator, pod = seen
    _stolen(world, pod)
    with pytest.raises(PermanentError, match="is not this pod's"):
        await pods.ensure_identity(operator.context, pod)
    found = world.cluster.peek(PODS, NAMESPACE, pod.name)
    assert found is None or "deletionTimestamp" in found["metadata"]


async def test_not_when_it_changes_at_that_moment(
    world: World, seen: tuple[Operator, PodView], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a session's by then: the next look decides."""
    operator, pod = seen
    _stolen(world, pod)
    revoke: Callable[[PodView], Any] = operator.context.egress.revoke

    async def meanwhile(each: PodView) -> None:
        await revoke(each)
        world.cluster.patch_status(PODS, NAMESPACE, pod.name, {"message": "changed"})

    monkeypatch.setattr(operator.context.egress, "revoke", meanwhile)
    with pytest.raises(ConflictError):
        await pods.ensure_identity(operator.context, pod)
    found = world.cluster.peek(PODS, NAMESPACE, pod.name)
    assert found is not None
    assert "deletionTimestamp" not in found["metadata"]
