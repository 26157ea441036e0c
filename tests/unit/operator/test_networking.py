"""From what an Environment allows to policies, recipes and pods, as the cluster changes."""

import asyncio
import base64
import json
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator.api.environment import EnvironmentStatus
from cloister_operator.api.pod import view
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    SECRETS,
    SERVICE_CIDRS,
    SERVICES,
)
from cloister_operator.controller import ranges
from cloister_operator.controller.context import address
from cloister_operator.controller.warmer import STARTUP_LIMIT
from cloister_operator.errors import NotFoundError, PermanentError, RefusedError
from cloister_operator.plan.packages import read
from cloister_operator.plan.ranges import MAX_CLAIMED
from support.fake_api import Connection
from support.fake_operator import World
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]
SYSTEM = "cloister-system"
HOSTS = {"allowedHosts": ["b.example.com", "a.example.com"]}
MANAGERS = {"allowPackageManagers": True}


def with_gateway(world: World, address: str = "10.96.0.7") -> None:
    """Give the cluster a Service of egress gateways."""
    if world.cluster.peek(NAMESPACES, "", SYSTEM) is None:
        world.cluster.create(NAMESPACES, "", {"metadata": {"name": SYSTEM}})
    body = {"metadata": {"name": "cloister-egress-gateway"}, "spec": {"clusterIP": address}}
    world.cluster.create(SERVICES, SYSTEM, body)


def ready(world: World, name: str = "py") -> tuple[str, str]:
    return world.condition(world.environment(name))


def unrestricted(world: World) -> list[str]:
    """What the policy leaves out of the internet."""
    policy = world.cluster.get(NETWORK_POLICIES, NAMESPACE, "cloister-egress-unrestricted")
    (rule,) = policy["spec"]["egress"]
    return [each for peer in rule["to"] for each in peer["ipBlock"]["except"]]


def env_of(world: World, pod: JSON) -> dict[str, str]:
    labels = pod["metadata"]["labels"]
    name = f"{labels['cloister.dev/environment']}-{labels['cloister.dev/recipe']}"
    secret = world.cluster.get(SECRETS, NAMESPACE, name)
    found: dict[str, str] = json.loads(base64.b64decode(secret["data"]["recipe.json"]))["env"]
    return found


async def test_hosts_without_a_gateway_are_a_condition_until_there_is_one(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("environments", "grounds"):
        path = f"cloister_operator.controller.{module}.RECHECKED_AFTER_SECONDS"
        monkeypatch.setattr(path, 0.0)
    world = make_world(egress_gateway=True)
    world.apply_environment(networking=HOSTS)
    operator = world.start()
    await operator.until(lambda: ready(world) == ("False", "EgressGatewayMissing"))
    assert world.pods() == []
    with_gateway(world)
    operator.look()
    await operator.until(lambda: world.pods(network="gateway"))
    (pod,) = world.pods()
    assert pod["metadata"]["annotations"]["cloister.dev/egress-hosts"] == (
        "a.example.com,b.example.com"
    )
    assert env_of(world, pod)["https_proxy"] == "http://10.96.0.7:3128"


async def test_a_gateway_that_goes_is_missed_at_the_next_resync(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However lately an Environment was looked at for another reason."""
    monkeypatch.setattr("cloister_operator.controller.controller.RESYNC", timedelta(seconds=0.05))
    world = make_world(egress_gateway=True)
    with_gateway(world)
    world.apply_environment(networking=HOSTS)
    operator = world.start()
    await operator.until(lambda: world.pods(network="gateway"))
    world.cluster.delete(SERVICES, SYSTEM, "cloister-egress-gateway")
    await operator.until(lambda: ready(world) == ("False", "EgressGatewayMissing"))


async def test_a_pod_waits_until_its_way_to_the_gateways_is_open(make_world: Any) -> None:
    world = make_world(egress_gateway=True)
    with_gateway(world)
    world.apply_environment(networking=HOSTS)
    world.apply_environment("closed")
    operator = world.start()
    await operator.until(lambda: world.pool_is(1, "closed"))
    await operator.until(lambda: world.pods(network="gateway"))
    (needs,) = (view(each) for each in world.pods(network="gateway"))
    (other,) = (view(each) for each in world.pods(network="none"))
    warmer = operator.controller._warmer
    world.sandboxes.way_closed = True
    waits = asyncio.create_task(warmer._until_through(needs, address(needs)))
    probes = world.sandboxes.probes[needs.uid]
    await operator.until(lambda: world.sandboxes.probes[needs.uid] > probes + 1)
    assert not waits.done()
    world.sandboxes.way_closed = False
    await waits
    # Who needs none is asked nothing.
    probes = world.sandboxes.probes[other.uid]
    await warmer._until_through(other, address(other))
    assert world.sandboxes.probes[other.uid] == probes

    world.sandboxes.way_closed = True
    world.clock.now += STARTUP_LIMIT * 2
    with pytest.raises(
        PermanentError, match=r"does not reach the egress gateways at 10.96.0.7:3128"
    ):
        await warmer._until_through(needs, address(needs))


async def test_a_change_of_hosts_reaches_new_pods_only(make_world: Any) -> None:
    world = make_world(egress_gateway=True)
    with_gateway(world)
    world.apply_environment(networking={})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    world.apply_session()
    await operator.until(lambda: world.served("s1"))
    (mine,) = world.pods(state="claimed")
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"networking": HOSTS})
    await operator.until(lambda: world.pods(network="gateway"))
    (still,) = world.pods(state="claimed")
    assert still["metadata"] == mine["metadata"]
    assert still["metadata"]["labels"]["cloister.dev/network"] == "none"


async def test_a_name_that_only_the_operator_can_refuse_is_a_condition(world: World) -> None:
    world.apply_environment(networking={"allowedHosts": ["fine.example.com", "*.co.uk"]})
    operator = world.start()
    await operator.until(lambda: ready(world) == ("False", "InvalidSpec"))
    message = world.environment()["status"]["conditions"][0]["message"]
    assert message.startswith("spec.networking.allowedHosts[1]: ")
    assert world.pods() == []


# --- the cluster's own addresses -----------------------------------------------------------------


def node(name: str, address: str) -> JSON:
    found = {"type": "ExternalIP", "address": address}
    return {"metadata": {"name": name}, "status": {"addresses": [found]}}


async def test_the_internet_is_without_the_clusters_own_addresses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "SETTLES_SECONDS", 0.02)
    world.cluster.create(NODES, "", node("n1", "34.1.2.3"))
    world.apply_environment(networking={"type": "unrestricted"})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    assert "34.1.2.3/32" in unrestricted(world)
    proofs = sum(world.sandboxes.probes.values())

    world.cluster.create(NODES, "", node("n2", "35.1.2.3"))
    await operator.until(lambda: "35.1.2.3/32" in unrestricted(world))
    monkeypatch.setattr("cloister_operator.controller.prover.SETTLES_SECONDS", 0.02)
    # Somebody tries whether it holds.
    await operator.until(lambda: sum(world.sandboxes.probes.values()) > proofs)

    world.cluster.vanish(NODES, "", "n1")
    await operator.until(lambda: "34.1.2.3/32" not in unrestricted(world))
    # Pods stay as they are: the policy is what changed.
    assert world.pool_is(1)


async def test_many_changes_at_once_are_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "SETTLES_SECONDS", 0.05)
    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    await operator.settle()
    changes: list[None] = []
    operator.context.ranges.listen(lambda: changes.append(None))
    for index in range(100):
        world.cluster.create(NODES, "", node(f"n{index}", f"34.1.{index}.3"))
    await operator.until(lambda: "34.1.99.3/32" in (operator.context.ranges.current or ()))
    assert len(changes) <= 20


async def test_a_flood_of_claimed_addresses_closes_the_rest_all_the_same(world: World) -> None:
    claimed = [f"34.{each // 256}.{each % 256}.7" for each in range(5000)]
    for name, addresses in (("greedy", claimed), ("honest", ["36.1.1.1"])):
        world.cluster.create(NAMESPACES, "", {"metadata": {"name": name}})
        service = {"metadata": {"name": name}, "spec": {"externalIPs": addresses}}
        world.cluster.create(SERVICES, name, service)
    world.cluster.create(NODES, "", node("n1", "35.1.2.3"))
    world.apply_environment(networking={"type": "unrestricted"})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    closed = unrestricted(world)
    assert {"35.1.2.3/32", "36.1.1.1/32"} <= set(closed)
    assert sum(each.startswith("34.") for each in closed) == MAX_CLAIMED - 1


class WithoutRights(Connection):
    """An API server that keeps one kind to itself, or does not know it."""

    hidden = NODES
    problem: Exception = RefusedError("nodes is forbidden")

    async def list(self, resource: Any, *args: Any, **rest: Any) -> Any:
        if resource == self.hidden:
            raise self.problem
        return await super().list(resource, *args, **rest)


async def test_while_addresses_are_unknown_nobody_gets_the_internet(world: World) -> None:
    world.apply_environment("open", networking={"type": "unrestricted"})
    world.apply_environment("closed")
    operator = world.start(WithoutRights(world.cluster))
    await operator.until(lambda: world.pool_is(1, "closed"))
    await operator.until(lambda: ready(world, "open") == ("False", "RangesUnknown"))
    name = "cloister-egress-unrestricted"
    assert world.cluster.peek(NETWORK_POLICIES, NAMESPACE, name) is None
    assert world.pods(environment="open") == []


async def test_a_cluster_that_knows_no_ranges_of_services_is_fine(world: World) -> None:
    connection = WithoutRights(world.cluster)
    connection.hidden = SERVICE_CIDRS
    connection.problem = NotFoundError("the server could not find the requested resource")
    world.apply_environment("open", networking={"type": "unrestricted"})
    operator = world.start(connection)
    await operator.until(lambda: world.pool_is(1, "open"))
    assert operator.context.ranges.current


# --- package managers ----------------------------------------------------------------------------

ANSWERS = [("pip", ["https://index.example/simple"]), ("evil", ["https://evil.example/"])]


async def test_an_image_is_asked_once_by_a_pod_of_its_own(make_world: Any) -> None:
    world = make_world(egress_gateway=True)
    with_gateway(world)
    world.sandboxes.package_sources_said = ANSWERS
    world.sandboxes.answering.clear()
    spec = {"networking": MANAGERS, "setup": "pip config set global.index-url https://x.example"}
    world.apply_environment(**spec, pool={"size": 3}, env=[{"name": "A", "value": "1"}])
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: ready(world) == ("False", "ReadingPackageHosts"))
    (asked,) = world.pods()
    # Nothing of its author's ran in it, and it reaches nothing.
    assert asked["metadata"]["labels"]["cloister.dev/network"] == "none"
    assert env_of(world, asked) == {}
    world.sandboxes.answering.set()
    pool = {"network": "gateway", "state": "starting"}
    await operator.until(lambda: len(world.pods(**pool)) == 3)
    await operator.until(lambda: world.environment()["status"].get("allowedHosts"))
    status = world.environment()["status"]
    assert status["allowedHosts"] == ["index.example"]
    assert status["packageManagers"] == {
        "image": "registry.example/sandbox:1",
        "sources": [{"manager": "pip", "urls": ["https://index.example/simple"]}],
    }
    # The session waited for a pod that may reach them.
    await operator.until(lambda: world.pods(network="gateway", state="claimed"))
    assert world.sandboxes.claimed == {}
    for each in world.pods(network="gateway"):
        assert each["metadata"]["annotations"]["cloister.dev/egress-hosts"] == "index.example"


async def test_what_an_image_said_outlives_the_operator(make_world: Any) -> None:
    world = make_world(egress_gateway=True)
    with_gateway(world)
    said = read("registry.example/sandbox:1", ANSWERS).model_dump(mode="json", by_alias=True)
    world.apply_environment(networking=MANAGERS)
    world.cluster.patch_status(ENVIRONMENTS, NAMESPACE, "py", {"packageManagers": said})
    operator = world.start()
    await operator.until(lambda: world.pods(network="gateway"))
    assert len(world.pods()) == 1


async def test_another_image_is_asked_anew(make_world: Any) -> None:
    world = make_world(egress_gateway=True)
    with_gateway(world)
    world.sandboxes.package_sources_said = ANSWERS
    said = read("registry.example/old:1", [("pip", ["https://old.example/"])])
    world.apply_environment(networking=MANAGERS)
    dumped = said.model_dump(mode="json", by_alias=True)
    world.cluster.patch_status(ENVIRONMENTS, NAMESPACE, "py", {"packageManagers": dumped})
    operator = world.start()
    await operator.until(lambda: world.pods(network="gateway"))
    (pod,) = world.pods(network="gateway")
    assert pod["metadata"]["annotations"]["cloister.dev/egress-hosts"] == "index.example"


async def test_what_images_said_that_nobody_names_any_more_is_forgotten(make_world: Any) -> None:
    world = make_world(egress_gateway=True)
    with_gateway(world)
    world.sandboxes.package_sources_said = ANSWERS
    world.apply_environment(networking=MANAGERS)
    operator = world.start()

    def known() -> set[str]:
        return {image for _, image in operator.controller._environments._packages._known}

    for image in ("registry.example/a:1", "registry.example/b:1"):
        changed = {"networking": MANAGERS, "image": image}
        world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", changed)
        await operator.until(lambda wanted=image: wanted in known())
    assert known() == {"registry.example/b:1"}


async def test_what_one_namespace_heard_of_an_image_is_no_other_ones(make_world: Any) -> None:
    """Whoever gives the asked pod too little of everything has it tell too little."""
    world = make_world(egress_gateway=True)
    with_gateway(world)
    world.sandboxes.package_sources_said = []
    world.apply_environment(networking=MANAGERS, resources={"memory": "64Mi"})
    operator = world.start()
    await operator.until(lambda: world.environment().get("status", {}).get("packageManagers"))
    packages = operator.controller._environments._packages
    (mine,) = operator.context.environments.all()
    unsaid = mine.model_copy(update={"status": EnvironmentStatus()})
    elsewhere = mine.metadata.model_copy(update={"namespace": "other"})
    theirs = unsaid.model_copy(update={"metadata": elsewhere})
    assert not packages.unknown(unsaid)
    assert packages.unknown(theirs)


async def test_the_platforms_hosts_make_the_question_needless(make_world: Any) -> None:
    world = make_world(egress_gateway=True, egress_package_hosts=("mirror.example",))
    with_gateway(world)
    world.apply_environment(networking=MANAGERS)
    operator = world.start()
    await operator.until(lambda: world.pods())
    (pod,) = world.pods()
    assert pod["metadata"]["annotations"]["cloister.dev/egress-hosts"] == "mirror.example"
    assert (
        "packageManagers" not in world.environment().get("status", {})
        or not (world.environment()["status"]["packageManagers"])
    )


# --- profiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "profile", "fine"),
    [
        ("restricted", "strict", True),
        ("restricted", "rootish", False),
        ("baseline", "strict", False),
        ("baseline", "rootish", True),
        ("privileged", "rootish", False),
        ("", "strict", False),
    ],
)
async def test_a_namespace_holds_pods_as_strictly_as_their_profile_wants(
    world: World, level: str, profile: str, fine: bool
) -> None:
    labels = {"cloister.dev/sandboxes": "enabled", "pod-security.kubernetes.io/enforce": level}
    world.cluster.vanish(NAMESPACES, "", NAMESPACE)
    world.cluster.create(NAMESPACES, "", {"metadata": {"name": NAMESPACE, "labels": labels}})
    world.apply_environment(isolation={"profile": profile})
    operator = world.start()
    if fine:
        await operator.until(lambda: world.pool_is(1))
    else:
        await operator.until(lambda: ready(world) == ("False", "NamespaceNotEnabled"))
        assert world.pods() == []
