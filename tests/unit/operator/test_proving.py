"""What sandboxes try, what it proves, and what follows when they reach something."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator.cluster.resources import (
    ENDPOINT_SLICES,
    ENVIRONMENTS,
    NAMESPACES,
    NODES,
    SERVICES,
)
from cloister_operator.controller import bootstrap
from cloister_operator.plan import proving
from cloister_operator.plan.proving import METADATA, Landmark, Site
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]
CONTROLS = ("10.96.0.1:443", "10.0.0.9:8080")
SITE = Site(
    CONTROLS,
    (
        Landmark("api", "192.168.1.1:6443"),
        Landmark("dns", "10.96.0.10:53"),
        *(Landmark("node", f"192.168.1.{each}:10250", f"n{each}") for each in range(1, 9)),
    ),
    gateway="10.96.0.7:3128",
    nameservers=("1.1.1.1", "8.8.8.8"),
)
OTHER = ["10.244.0.5:7443"]


def test_a_pod_that_may_reach_nothing_tries_everything() -> None:
    tried = proving.targets(SITE, "none", "n7", OTHER)
    assert tried[:2] == list(CONTROLS)
    assert {
        *OTHER,
        *proving.METADATA,
        "192.168.1.1:6443",
        "10.96.0.10:53",
        "192.168.1.7:10250",
        "10.96.0.7:3128",
        "1.1.1.1:53",
    } <= set(tried)
    assert len(tried) <= 16


def test_where_others_have_tried_everything_a_pod_tries_a_few() -> None:
    tried = proving.targets(SITE, "none", "n7", OTHER, brief=True)
    assert set(tried) == {*CONTROLS, *OTHER, proving.METADATA[0], "1.1.1.1:53"}
    open_to_the_internet = proving.targets(SITE, "unrestricted", "n7", OTHER, brief=True)
    assert set(open_to_the_internet) == {*CONTROLS, *OTHER, proving.METADATA[0]}


def test_its_own_node_is_tried_and_another_one() -> None:
    nodes = [each for each in proving.targets(SITE, "none", "n7") if each.endswith(":10250")]
    assert nodes[0] == "192.168.1.7:10250"
    assert len(nodes) == 2


@pytest.mark.parametrize(
    ("network", "may"), [("gateway", "10.96.0.7:3128"), ("unrestricted", "1.1.1.1:53")]
)
def test_what_a_pod_may_reach_it_does_not_try(network: str, may: str) -> None:
    tried = proving.targets(SITE, network, "n1", OTHER)
    assert may not in tried
    rest = {"10.96.0.7:3128", "1.1.1.1:53"} - {may}
    assert rest | {"192.168.1.1:10250", *proving.METADATA, *CONTROLS} <= set(tried)


def test_of_many_landmarks_each_kind_is_tried() -> None:
    twice = (*SITE.landmarks, Landmark("api", "192.168.1.2:6443"), Landmark("dns", "10.96.0.11:53"))
    site = Site(CONTROLS, twice, "10.96.0.7:3128", ("1.1.1.1",))
    tried = proving.targets(site, "none", "n7", OTHER)
    assert len(tried) == proving.MAX_TARGETS
    assert {*CONTROLS, *OTHER, "10.96.0.7:3128", "1.1.1.1:53", "192.168.1.7:10250"} <= set(tried)
    assert len([each for each in tried if each.endswith(":10250")]) == 2
    assert set(proving.METADATA) - set(tried) == set(proving.METADATA[-2:])


def test_the_platform_leaves_kinds_out() -> None:
    site = Site(CONTROLS, SITE.landmarks, skipped=("node", "sandbox"))
    tried = proving.targets(site, "none", "n1", OTHER)
    assert not [each for each in tried if each.endswith((":10250", ":7443"))]
    assert set(CONTROLS) <= set(tried)


def test_only_what_is_known_to_be_alive_counts_as_proof() -> None:
    dead = proving.message(SITE, "none", ())
    assert dead == (
        "pods of this namespace tried to reach 10.96.0.1:443, 10.0.0.9:8080 and could not"
    )
    alive = {"192.168.1.1:10250", "10.96.0.10:53", "1.1.1.1:53", OTHER[0]}
    assert proving.message(SITE, "none", alive).endswith(
        "10.0.0.9:8080, nodes, the cluster's DNS, the internet and could not"
    )
    assert "internet" not in proving.message(SITE, "unrestricted", alive)


NODE: JSON = {
    "metadata": {"name": "n1"},
    "status": {
        "addresses": [
            {"type": "InternalIP", "address": "192.168.1.1"},
            {"type": "InternalIP", "address": "fd00::1"},
            {"type": "ExternalIP", "address": "34.1.2.3"},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}},
    },
}
DNS: JSON = {
    "metadata": {"name": "kube-dns", "namespace": "kube-system"},
    "spec": {
        "clusterIP": "10.96.0.10",
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
    },
}
SLICE: JSON = {
    "metadata": {
        "name": "kubernetes",
        "namespace": "default",
        "labels": {"kubernetes.io/service-name": "kubernetes"},
    },
    "ports": [{"port": 6443}],
    "endpoints": [{"addresses": ["192.168.1.1"]}],
}


def test_landmarks_of_objects() -> None:
    assert proving.of_node(NODE) == {
        Landmark("node", "192.168.1.1:10251", "n1"),
        Landmark("node", "[fd00::1]:10251", "n1"),
    }
    assert proving.of_service(DNS) == {Landmark("dns", "10.96.0.10:53")}
    assert proving.of_endpoint_slice(SLICE) == {Landmark("api", "192.168.1.1:6443")}
    headless = DNS | {"spec": DNS["spec"] | {"clusterIP": "None"}}
    assert proving.of_service(headless) == frozenset()
    tenants = DNS | {"metadata": {"name": "dns", "namespace": "team-a"}}
    assert proving.of_service(tenants) == frozenset()
    assert proving.of_node({"metadata": {"name": "n"}, "status": {}}) == frozenset()


@pytest.mark.parametrize(
    ("uid_map", "real"),
    [
        ("         0     100000      65536", True),
        ("0 100000 1000\n1000 201000 64536", True),
        ("         0          0 4294967295", False),
        ("0 0 4294967295\n", False),
        ("0 100000 1000\n1000 1000 1", False),
        ("0 0 1", False),
        ("", False),
        ("nonsense", False),
        ("0 x 65536", False),
        ("0 100000 0", False),
        ("0 100000", False),
        ("0 -5 65536", False),
    ],
)
def test_user_namespaces_are_believed_when_seen(uid_map: str, real: bool) -> None:
    assert proving.has_user_namespace(uid_map) is real


# --- in the operator ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy engines of these clusters need no time."""
    for module, name in (
        ("prover", "GRACE_SECONDS"),
        ("prover", "PAUSE_SECONDS"),
        ("warmer", "ENFORCEMENT_GRACE_SECONDS"),
        ("warmer", "_LONGEST_PAUSE"),
    ):
        monkeypatch.setattr(f"cloister_operator.controller.{module}.{name}", 0.02)


async def proven(world: World, **spec: Any) -> Operator:
    world.apply_environment(pool={"size": 2}, **spec)
    operator = world.start()
    await operator.until(lambda: world.pool_is(2))
    await operator.settle()
    return operator


async def test_a_pod_without_its_user_namespace_serves_nobody(world: World) -> None:
    world.sandboxes.uid_map = "0 0 4294967295"
    world.apply_environment()
    operator = world.start()
    await operator.until(
        lambda: world.condition(world.environment(), "PoolReady")[1] == "UserNamespaceMissing"
    )
    assert world.pods(state="warm") == []


async def test_where_none_was_asked_for_none_is_missed(make_world: Any) -> None:
    world = make_world(sandbox_user_namespaces=False)
    world.sandboxes.uid_map = "0 0 4294967295"
    assert await proven(world)


async def test_new_pods_try_a_few_addresses_for_as_long_as_a_proof_counts(world: World) -> None:
    world.apply_environment(pool={"size": 1})
    operator = world.start()

    async def tried_by_a_new_pod(size: int) -> list[str]:
        before = {pod["metadata"]["uid"] for pod in world.pods()}
        world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"pool": {"size": size}})
        await operator.until(lambda: world.pool_is(size))
        (new,) = {pod["metadata"]["uid"] for pod in world.pods()} - before
        return world.sandboxes.tried[new]

    everything = await tried_by_a_new_pod(1)
    few = await tried_by_a_new_pod(2)
    assert set(METADATA) <= set(everything)
    assert set(METADATA) & set(few) == {METADATA[0]}
    world.clock.now += timedelta(hours=2)
    assert set(METADATA) <= set(await tried_by_a_new_pod(3))


async def test_a_network_that_opens_later_stops_new_sessions(world: World) -> None:
    operator = await proven(world)
    world.apply_session("before")
    await operator.until(lambda: world.served("before"))
    await operator.until(lambda: world.pool_is(2))
    await operator.settle()
    assert world.condition(world.environment(), "NetworkEnforced") == ("True", "Proven")

    world.sandboxes.reachable = ["169.254.169.254:80"]
    await operator.controller._prover.prove()
    await operator.until(
        lambda: world.condition(world.environment(), "NetworkEnforced")[0] == "False"
    )
    world.apply_session("after")
    await operator.until(lambda: world.phase("after") == "Pending")
    # Whoever tries again after a while finds no pod that counts as usable.
    await operator.until(lambda: world.condition(world.session("after"))[1] == "NetworkNotEnforced")
    assert not operator.context.usable & {
        each["metadata"]["uid"] for each in world.pods(state="warm")
    }
    assert world.served("before")

    world.sandboxes.reachable = []
    await operator.until(
        lambda: world.condition(world.environment(), "NetworkEnforced")[0] == "True"
    )
    operator.look()
    await operator.until(lambda: world.served("after"))


async def test_each_kind_of_network_is_proven_by_a_pod_of_its_own(world: World) -> None:
    world.apply_environment("open", networking={"type": "unrestricted"})
    operator = await proven(world)
    await operator.until(lambda: world.pool_is(1, "open"))
    await operator.settle()
    probed = dict(world.sandboxes.probes)
    await operator.controller._prover.prove()
    news = {uid: count - probed.get(uid, 0) for uid, count in world.sandboxes.probes.items()}
    labels = {
        each["metadata"]["uid"]: each["metadata"]["labels"]["cloister.dev/network"]
        for each in world.pods()
    }
    assert sorted(labels[uid] for uid, count in news.items() if count) == ["none", "unrestricted"]

    # What one kind reaches says nothing of the other.
    world.sandboxes.reachable = ["1.1.1.1:53"]
    await operator.controller._prover.prove()
    await operator.until(
        lambda: world.condition(world.environment(), "NetworkEnforced")[0] == "False"
    )
    assert world.condition(world.environment("open"), "NetworkEnforced") == ("True", "Proven")


async def test_it_is_proven_again_and_again(make_world: Any) -> None:
    world = make_world(proof_interval=0.05)
    operator = await proven(world)
    probes = sum(world.sandboxes.probes.values())
    # By nobody's doing: no event, and no new pod.
    await operator.until(lambda: sum(world.sandboxes.probes.values()) > probes + 2)
    world.sandboxes.reachable = ["10.0.0.9:8080"]
    await operator.until(
        lambda: world.condition(world.environment(), "NetworkEnforced")[0] == "False"
    )


async def test_a_claimed_pod_is_never_asked(world: World) -> None:
    operator = await proven(world)
    for name in ("a", "b"):
        world.apply_session(name)
    await operator.until(lambda: world.served("a") and world.served("b"))
    claimed = {each["metadata"]["uid"] for each in world.pods(state="claimed")}
    await operator.until(lambda: world.pool_is(2))
    await operator.settle()
    before = {uid: world.sandboxes.probes[uid] for uid in claimed}
    await operator.controller._prover.prove()
    assert {uid: world.sandboxes.probes[uid] for uid in claimed} == before


async def test_targets_come_from_what_is_in_the_cluster(world: World) -> None:
    for namespace in ("default", "kube-system"):
        world.cluster.create(NAMESPACES, "", {"metadata": {"name": namespace}})
    for resource, body in ((NODES, NODE), (SERVICES, DNS), (ENDPOINT_SLICES, SLICE)):
        world.cluster.create(resource, body["metadata"].get("namespace", ""), body)
    operator = await proven(world)
    asked: list[str] = []

    async def reaches(target: str) -> bool:
        asked.append(target)
        return target == "10.96.0.10:53"

    operator.context.reaches = reaches
    await operator.controller._prover.prove()
    assert {"192.168.1.1:10251", "10.96.0.10:53", "192.168.1.1:6443"} <= set(asked)
    proof = operator.context.proofs[NAMESPACE, "none"]
    assert "the cluster's DNS" in proof.message
    assert "nodes" not in proof.message


async def test_the_positive_control_is_a_connection() -> None:
    ended = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await bootstrap.reaches(f"127.0.0.1:{port}")
    await ended.wait()
    server.close()
    await server.wait_closed()
    assert not await bootstrap.reaches(f"127.0.0.1:{port}")
    assert not await bootstrap.reaches("[::1]:1")
