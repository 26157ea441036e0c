"""The CA in the operator: read, made once, rotated while sandboxes run."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import manifests, names
from cloister_operator.cluster.resources import NAMESPACES, SECRETS, SESSIONS
from cloister_operator.controller import authority as certificates
from cloister_operator.controller.authority import Rotation
from cloister_operator.errors import ConflictError, TransientError
from cloister_operator.generations import Generations
from cloister_operator.identity import Authority
from cloister_operator.plan import rotation
from cloister_operator.plan.rotation import Step
from support.fake_api import Connection
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE, NOW

LATER = rotation.OVERLAP + timedelta(minutes=1)


def empty(authority: Authority) -> World:
    """A world with the operator's own namespace."""
    made = World(authority)
    made.cluster.create(NAMESPACES, "", {"metadata": {"name": made.settings.namespace}})
    return made


@pytest.fixture
async def world() -> AsyncIterator[World]:
    generations = Generations.first(NOW - timedelta(days=30))
    made = empty(generations.authority())
    body = manifests.ca_secret(made.settings, generations.to_secret_data())
    made.cluster.create(SECRETS, made.settings.namespace, body)
    yield made
    await made.close()


class Leader:
    """An operator that leads, and what it published for clients."""

    def __init__(self, world: World) -> None:
        self.published: list[bytes] = []
        self.world = world
        # Each process has a CA of its own to look at.
        self.operator = Operator(world, Connection(world.cluster))
        self.operator.context.authority = Authority.from_pem(
            *(world.authority.to_secret_data()[key] for key in ("tls.crt", "tls.key"))
        )
        world.operators.append(self.operator)
        self.rotation = Rotation(self.operator.context, self._publish)

    @property
    def authority(self) -> Authority:
        return self.operator.context.authority

    async def _publish(self) -> None:
        self.published.append(self.authority.ca_pem)

    async def look(self, after: timedelta = timedelta()) -> Step:
        self.world.clock.now += after
        return await self.rotation.look()


def stored(world: World) -> Generations:
    found = world.cluster.get(SECRETS, world.settings.namespace, names.CA_SECRET)
    data = {key: base64.b64decode(value) for key, value in found["data"].items()}
    return Generations.from_secret_data(data)


def ask(world: World, word: str) -> None:
    """What `kubectl annotate` does."""
    annotations: dict[str, Any] = {names.ROTATE_CA: word}
    world.cluster.json_patch(
        SECRETS,
        world.settings.namespace,
        names.CA_SECRET,
        [{"op": "add", "path": "/metadata/annotations", "value": annotations}],
    )


async def test_of_two_operators_that_start_together_one_makes_the_ca() -> None:
    world = empty(Authority.create(NOW))
    api = Connection(world.cluster)
    both = await asyncio.gather(
        *(certificates.read_or_make(api, world.settings, NOW) for _ in range(2))
    )
    assert both[0].issuing.ca_pem == both[1].issuing.ca_pem == stored(world).issuing.ca_pem


async def test_a_secret_that_is_unfit_is_nobodys_ca(world: World) -> None:
    world.cluster.json_patch(
        SECRETS,
        world.settings.namespace,
        names.CA_SECRET,
        [{"op": "replace", "path": "/data", "value": {"tls.crt": "eA==", "tls.key": "eQ=="}}],
    )
    with pytest.raises(TransientError, match="cloister-ca: the Secret with the CA cannot be read"):
        await certificates.read(Connection(world.cluster), world.settings)


async def test_a_whole_rotation_with_a_pod_that_runs_all_the_time(world: World) -> None:
    world.apply_environment(pool={"size": 1})
    leader = Leader(world)
    await leader.operator.until(lambda: world.pool_is(1))
    (pod,) = world.pods()
    uid, first = pod["metadata"]["uid"], leader.authority.issuer_pem
    assert await leader.look() is Step.NONE
    ask(world, "2026-05-01")
    assert await leader.look() is Step.INTRODUCE
    # The pod is told at the next look, clients at the same; the CA of before signs.
    assert await leader.look() is Step.NONE
    second = stored(world).upcoming
    assert second is not None
    assert leader.authority.issuer_pem == first
    assert world.sandboxes.trusted[uid] == leader.published[-1] == first + second.ca_pem
    # Asked for once: the same word again is no other request.
    assert await leader.look(LATER) is Step.SWITCH
    assert await leader.look() is Step.NONE
    assert leader.authority.issuer_pem == second.ca_pem
    assert world.sandboxes.trusted[uid] == leader.published[-1] == second.ca_pem + first
    assert stored(world).upcoming is None
    # For as long as a pod lives that the CA of before certified, it is trusted.
    assert await leader.look(timedelta(days=30)) is Step.NONE
    world.apply_session()
    await leader.operator.until(lambda: world.phase() == "Running")
    assert world.session()["status"]["podUID"] == uid
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await leader.operator.until(lambda: world.pool_is(1) and not world.pods(state="claimed"))
    assert await leader.look() is Step.DROP
    assert await leader.look() is Step.NONE
    assert leader.published[-1] == second.ca_pem == leader.authority.ca_pem


async def test_a_pod_that_does_not_answer_keeps_the_new_ca_from_signing(world: World) -> None:
    world.apply_environment(pool={"size": 1})
    leader = Leader(world)
    await leader.operator.until(lambda: world.pool_is(1))
    ask(world, "now")
    assert await leader.look() is Step.INTRODUCE
    world.sandboxes.answering.clear()
    assert await leader.look(LATER) is Step.NONE
    world.sandboxes.answering.set()
    assert await leader.look() is Step.SWITCH


async def test_the_next_leader_goes_on(world: World) -> None:
    first, second = Leader(world), Leader(world)
    await asyncio.gather(*(each.operator.context.synced.wait() for each in (first, second)))
    ask(world, "now")
    assert await first.look() is Step.INTRODUCE
    assert await second.look(LATER) is Step.SWITCH
    assert await first.look() is Step.NONE
    assert first.authority.ca_pem == second.authority.ca_pem == first.published[-1]


async def test_of_two_that_believe_they_lead_one_makes_the_step(world: World) -> None:
    leader = Leader(world)
    await leader.operator.context.synced.wait()
    old = await certificates.read(Connection(world.cluster), world.settings)
    ask(world, "now")
    assert await leader.look() is Step.INTRODUCE
    made = stored(world).upcoming
    assert made is not None
    with pytest.raises(ConflictError):
        await leader.rotation._write(old, old.generations.introduced(NOW, "now"))
    kept = stored(world).upcoming
    assert kept is not None
    assert kept.ca_pem == made.ca_pem


async def test_who_does_not_lead_takes_over_what_the_secret_says(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "READ_SECONDS", 0.01)
    leader, follower = Leader(world), Leader(world)
    await leader.operator.context.synced.wait()
    following = asyncio.create_task(follower.rotation.follow())
    ask(world, "now")
    assert await leader.look() is Step.INTRODUCE
    await leader.operator.until(lambda: follower.authority.ca_pem == leader.authority.ca_pem)
    assert follower.published == []
    following.cancel()


async def test_an_answer_that_is_lost_makes_no_third_ca(world: World) -> None:
    leader = Leader(world)
    await leader.operator.context.synced.wait()
    ask(world, "now")
    write = leader.operator.connection.json_patch

    async def lost(*given: Any) -> Any:
        await write(*given)
        raise TransientError("no answer")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(leader.operator.connection, "json_patch", lost)
        with pytest.raises(TransientError):
            await leader.look()
    made = stored(world).upcoming
    assert made is not None
    assert await leader.look() is Step.NONE
    assert leader.authority.ca_pem.endswith(made.ca_pem)
