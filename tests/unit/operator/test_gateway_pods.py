"""The whole operator with egress gateways: when a pod serves, and what precedes its end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.cluster.resources import ENVIRONMENTS, NAMESPACES, PODS, SERVICES, SESSIONS
from cloister_operator.controller import gateways as module
from cloister_operator.controller.decisions import Decisions
from cloister_operator.controller.gateway_link import Lead
from cloister_operator.identity import Authority
from cloister_operator.sandboxes.gateways import EgressGateways
from support.certificates import Pair
from support.fake_api import Connection
from support.fake_gateway import FakeGateway
from support.fake_operator import Operator, World
from support.gateway_site import SYSTEM, gateway_body
from support.operator_objects import JSON, NAMESPACE
from support.sandbox_server import free_port

HOSTS = frozenset({"a.example"})
NETWORKING = {"type": "limited", "allowedHosts": ["a.example"]}


class Guarded(World):
    """A World with egress gateways that listen."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority, egress_gateway=True)
        self.cluster.create(NAMESPACES, "", {"metadata": {"name": SYSTEM}})
        service = {"metadata": {"name": names.EGRESS_GATEWAY}, "spec": {"clusterIP": "10.96.0.7"}}
        self.cluster.create(SERVICES, SYSTEM, service)
        self.port = free_port()
        self.gateways: dict[str, FakeGateway] = {}
        self.deleted: list[tuple[str, bool]] = []
        """Names of pods whose deletion was asked for, and whether a gateway still knew them."""
        self.cluster.listeners.append(self._look)

    async def gateway(self, name: str) -> FakeGateway:
        """Start one, in a pod that is Ready."""
        made = self.gateways[name] = FakeGateway()
        address = f"127.0.0.{len(self.gateways) + 1}"
        identity = self.authority.egress_gateway_server(datetime.now(UTC))
        pair = Pair(identity.certificate_pem, identity.private_key_pem)
        await made.start(pair, self.authority.ca_pem, address, self.port)
        body = gateway_body(name, address)
        self.cluster.create(PODS, SYSTEM, body)
        self.cluster.set_pod_status(SYSTEM, name, **body["status"])
        return made

    def lead(self, term: int = 1) -> "Leader":
        """Start an operator that leads."""
        made = Leader(self, Connection(self.cluster), term)
        self.operators.append(made)
        return made

    def open_environment(self, **spec: Any) -> None:
        """An Environment that allows a host."""
        self.apply_environment(networking=NETWORKING, **spec)

    def known(self, pod: JSON) -> bool:
        """Whether any gateway knows the pod."""
        uid = pod["metadata"]["uid"]
        return any(
            uid in {each for each, _ in gateway.held.sources.values()}
            for gateway in self.gateways.values()
        )

    def warm(self) -> list[JSON]:
        """Warm pods."""
        return self.pods(state="warm")

    def _look(self, change: Any) -> None:
        before, after = change.before or {}, change.after or {}
        if change.resource != PODS or "deletionTimestamp" in before.get("metadata", {}):
            return
        of_ours = (before.get("metadata") or {}).get("namespace") == NAMESPACE
        if of_ours and (not after or "deletionTimestamp" in after["metadata"]):
            self.deleted.append((before["metadata"]["name"], self.known(before)))


class Leader(Operator):
    """An operator that also pushes."""

    def __init__(self, world: Guarded, connection: Connection, term: int) -> None:
        self.client = EgressGateways(world.authority, port=world.port)
        self._term = term
        super().__init__(world, connection)

    async def _run(self) -> None:
        context = self.context
        lead = Lead(self._term, lambda: True, self.client, context.api)
        listener = Decisions(context, self.controller._recorder)
        async with asyncio.TaskGroup() as group:
            group.create_task(super()._run())
            await context.synced.wait()
            group.create_task(context.egress.run(lead, listener))

    async def kill(self) -> None:
        await super().kill()
        await self.client.aclose()


@pytest.fixture
async def guarded(world_authority: Authority) -> AsyncIterator[Guarded]:
    made = Guarded(world_authority)
    yield made
    await made.close()
    for each in made.gateways.values():
        each.answers.set()
        await each.stop()


async def test_no_pod_serves_before_every_gateway_knows_it(guarded: Guarded) -> None:
    one, two = await guarded.gateway("g1"), await guarded.gateway("g2")
    operator = guarded.lead()
    await operator.until(lambda: one.ready and two.ready)
    two.answers.clear()
    guarded.open_environment(pool={"size": 2})
    guarded.apply_session()
    await operator.until(lambda: len(one.held.sources) >= 2)
    assert not guarded.warm()
    assert guarded.phase() != "Running"
    two.answers.set()
    await operator.until(lambda: guarded.served("s1"))
    await operator.until(lambda: len(guarded.warm()) == 2)
    for pod in guarded.pods():
        for gateway in (one, two):
            found = gateway.reaches(pod["status"]["podIP"])
            assert found == (pod["metadata"]["uid"], HOSTS)


async def test_without_gateways_that_are_ready_nothing_serves(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TELL_SECONDS", 0.1)
    operator = guarded.lead()
    guarded.open_environment(pool={"size": 1})
    await operator.until(lambda: guarded.pods(state="starting"))
    guarded.apply_session()
    told = ("False", "EgressNotGranted")
    await operator.until(lambda: guarded.condition(guarded.environment(), "PoolReady") == told)
    await operator.until(lambda: guarded.condition(guarded.session()) == told)
    assert not guarded.warm()
    await guarded.gateway("g1")
    await operator.until(guarded.warm)
    await operator.until(lambda: guarded.served("s1"))
    await operator.until(lambda: guarded.pool_is(1))


async def test_pods_without_hosts_wait_for_no_gateway(guarded: Guarded) -> None:
    operator = guarded.lead()
    guarded.apply_environment(pool={"size": 1})
    await operator.until(lambda: guarded.pool_is(1))
    assert guarded.warm()[0]["metadata"]["labels"][names.NETWORK_LABEL] == names.NETWORK_NONE


async def test_whatever_ends_a_pod_its_right_ends_first(guarded: Guarded) -> None:
    await guarded.gateway("g1")
    operator = guarded.lead()
    guarded.open_environment(pool={"size": 2})
    guarded.apply_session()
    await operator.until(lambda: guarded.served("s1"))
    await operator.until(lambda: len(guarded.warm()) == 2)
    # A session that ends, by its lifetime.
    guarded.cluster.patch_spec(SESSIONS, NAMESPACE, "s1", {"lifecycle": {"maxLifetime": "1s"}})
    guarded.clock.now += timedelta(seconds=5)
    operator.look()
    await operator.until(lambda: guarded.phase() == "Terminated")
    await operator.until(lambda: len(guarded.deleted) == 1)
    # A pool that shrinks, and one whose recipe changes.
    guarded.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"pool": {"size": 1}})
    await operator.until(lambda: len(guarded.deleted) == 2)
    changed = {"networking": {**NETWORKING, "allowedHosts": ["b.example"]}}
    guarded.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", changed)
    await operator.until(lambda: len(guarded.deleted) == 3)
    assert [known for _, known in guarded.deleted] == [False, False, False]
    (last,) = guarded.warm()
    found = guarded.gateways["g1"].reaches(last["status"]["podIP"])
    assert found == (last["metadata"]["uid"], frozenset({"b.example"}))


async def test_a_running_session_keeps_the_hosts_that_it_began_with(guarded: Guarded) -> None:
    gateway = await guarded.gateway("g1")
    operator = guarded.lead()
    guarded.open_environment(pool={"size": 1})
    guarded.apply_session()
    await operator.until(lambda: guarded.served("s1"))
    changed = {"networking": {**NETWORKING, "allowedHosts": ["b.example"]}}
    guarded.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", changed)
    await operator.until(
        lambda: frozenset({"b.example"}) in {gateway.held.right(x)[1] for x in gateway.held.sources}
    )
    (mine,) = guarded.pods(state="claimed")
    assert gateway.reaches(mine["status"]["podIP"]) == (mine["metadata"]["uid"], HOSTS)
    # And so it is for the next operator, which never saw that Environment.
    await operator.kill()
    guarded.operators.remove(operator)
    second = guarded.lead(term=2)
    await second.until(lambda: gateway.held.version[0] == 2)
    assert gateway.reaches(mine["status"]["podIP"]) == (mine["metadata"]["uid"], HOSTS)
    assert mine["metadata"]["uid"] not in gateway.cut


async def test_a_gateway_that_hangs_keeps_no_pod_for_ever(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REVOKE_SECONDS", 0.3)
    monkeypatch.setattr("cloister_operator.sandboxes.gateways.APPLY_SECONDS", 0.1)
    gateway = await guarded.gateway("g1")
    operator = guarded.lead()
    guarded.open_environment(pool={"size": 0})
    uid = guarded.apply_session()
    await operator.until(lambda: guarded.served("s1"))
    gateway.answers.clear()
    guarded.cluster.delete(SESSIONS, NAMESPACE, "s1", uid=uid)
    await operator.until(lambda: not guarded.pods())
    # Nor is one made that might get its address, until the gateway answers.
    guarded.apply_session("s2")
    await operator.until(lambda: not len(operator.context.queue))
    assert not guarded.pods()
    gateway.answers.set()
    await operator.until(lambda: guarded.served("s2"))


@pytest.mark.parametrize("takes", ["before", "after"])
async def test_a_pod_that_somebody_claims_meanwhile_keeps_its_right(
    guarded: Guarded, takes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool wants to drop it, and another operator has just given it to a session."""
    gateway = await guarded.gateway("g1")
    operator = guarded.lead()
    guarded.open_environment(pool={"size": 1})
    await operator.until(guarded.warm)
    (pod,) = guarded.warm()
    label = f"/metadata/labels/{names.STATE_LABEL.replace('/', '~1')}"
    claim = [{"op": "replace", "path": label, "value": names.STATE_CLAIMED}]
    revoke = operator.context.egress.revoke
    met: Callable[[Any], Any] = revoke

    async def meanwhile(view: Any) -> None:
        if takes == "after":
            await revoke(view)
        guarded.cluster.json_patch(PODS, NAMESPACE, pod["metadata"]["name"], claim)
        if takes == "before":
            await revoke(view)
        monkeypatch.setattr(operator.context.egress, "revoke", met)

    monkeypatch.setattr(operator.context.egress, "revoke", meanwhile)
    guarded.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"pool": {"size": 0}})
    await operator.until(lambda: pod["metadata"]["uid"] in gateway.cut)
    await operator.until(lambda: guarded.known(pod))
    assert guarded.deleted == []
