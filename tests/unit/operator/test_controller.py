"""What the controller does to a cluster: Environments, and the network around their pods."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.cluster.resources import (
    CONFIG_MAPS,
    ENVIRONMENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    SECRETS,
)
from cloister_operator.controller import warmer
from support.eventually import until
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.operator_objects import NAMESPACE, allowed

JSON = dict[str, Any]
MakeWorld = Callable[..., World]


# --- environments --------------------------------------------------------------------------------


async def test_an_environment_gets_policies_then_its_recipe_then_its_pool(world: World) -> None:
    world.apply_environment(pool={"size": 2})
    operator = world.start()
    await operator.until(lambda: world.pool_is(2))
    await operator.settle()
    writes = world.cluster.writes
    first_pod = next(n for n, each in enumerate(writes) if each.plural == "pods")
    recipe = world.environment()["status"]["recipeHash"]
    assert writes[:first_pod] == [
        Write("apply", "networkpolicies", "cloister-default-deny"),
        Write("apply", "networkpolicies", "cloister-exec-ingress"),
        Write("apply", "networkpolicies", "cloister-egress-gateway"),
        Write("apply", "networkpolicies", "cloister-egress-unrestricted"),
        Write("patch", "environments/status", "py"),
        Write("create", "secrets", f"py-{recipe}"),
    ]
    pods = world.pods()
    per_pod = [
        [(x.verb, x.plural) for x in writes if x.name == pod["metadata"]["name"]] for pod in pods
    ]
    assert per_pod == [[("create", "pods"), ("create", "secrets"), ("patch", "pods")]] * 2
    assert all(world.sandboxes.probes[pod["metadata"]["uid"]] == 1 for pod in pods)
    env = world.environment()
    assert world.condition(env) == ("True", "Available")
    assert world.condition(env, "PoolReady") == ("True", "PoolFilled")
    assert world.condition(env, "NetworkEnforced") == ("True", "Proven")
    assert env["status"]["pool"] == {
        "ready": 2,
        "starting": 0,
        "claimed": 0,
        "failed": 0,
        "wanted": 2,
    }
    assert env["status"]["observedGeneration"] == 1


async def test_a_settled_environment_causes_no_writes(world: World) -> None:
    world.apply_environment(pool={"size": 2})
    operator = world.start()
    await operator.until(lambda: world.pool_is(2))
    await operator.settle()
    world.cluster.writes.clear()
    for _ in range(3):
        operator.look()
        await operator.settle()
    assert world.cluster.writes == []


async def test_no_pod_is_warm_before_its_exec_server_answers(world: World) -> None:
    world.sandboxes.answering.clear()
    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.pods(state="starting"))
    await operator.until(lambda: world.condition(world.environment())[1] == "PoolFilling")
    assert world.pods(state="warm") == []
    world.sandboxes.answering.set()
    await operator.until(lambda: world.pool_is(1))


async def test_a_pool_follows_its_size(world: World) -> None:
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    for size in (3, 0, 2):
        world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"pool": {"size": size}})
        await operator.until(lambda wanted=size: world.pool_is(wanted))  # type: ignore[misc]
    assert world.leaks() == set()


async def test_a_changed_recipe_empties_no_pool(world: World) -> None:
    world.apply_environment(pool={"size": 2})
    operator = world.start()
    await operator.until(lambda: world.pool_is(2))
    old = {pod["metadata"]["name"] for pod in world.pods()}
    world.sandboxes.answering.clear()
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"setup": "true"})
    await operator.until(lambda: world.pods(state="starting") and not len(operator.context.queue))
    assert len(world.pods(state="starting")) == 1, "more are under way than the surge"
    assert {pod["metadata"]["name"] for pod in world.pods(state="warm")} == old
    world.sandboxes.answering.set()
    await operator.until(lambda: world.pool_is(2))
    assert old.isdisjoint(pod["metadata"]["name"] for pod in world.pods())
    await operator.settle()
    assert world.leaks() == set(), "the old recipe's Secret stays"


async def test_a_failed_setup_is_told_and_tried_again_later(world: World) -> None:
    world.sandboxes.setup_problem = "setup ended with code 3: no such package"
    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.condition(world.environment())[1] == "SetupFailed")
    (first,) = world.pods()
    await operator.settle()
    assert world.pods() == [first], "pods were burnt through"
    conditions = world.environment()["status"]["conditions"]
    assert "no such package" in conditions[0]["message"]
    world.sandboxes.setup_problem = ""
    await operator.advance(timedelta(seconds=31))
    await operator.until(lambda: world.pool_is(1))
    assert world.pods()[0]["metadata"]["name"] != first["metadata"]["name"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "cloister.dev/sandboxes=enabled"),
        ({names.SANDBOXES_LABEL: "enabled"}, "pod-security.kubernetes.io/enforce=restricted"),
    ],
)
async def test_a_namespace_that_is_not_enabled_gets_nothing(
    world: World, labels: dict[str, str], words: str
) -> None:
    world.cluster.vanish(NAMESPACES, "", NAMESPACE)
    world.cluster.create(NAMESPACES, "", {"metadata": {"name": NAMESPACE, "labels": labels}})
    world.cluster.writes.clear()
    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.condition(world.environment())[1] == "NamespaceNotEnabled")
    assert words in world.environment()["status"]["conditions"][0]["message"]
    assert {each.plural for each in world.cluster.writes} == {"environments/status"}


async def test_references_are_resolved_and_refused(world: World) -> None:
    reference = {"name": "tool", "key": "conf"}
    file = {"path": "/etc/tool.conf", "configMapKeyRef": reference}
    world.apply_environment(files=[file])
    operator = world.start()
    await operator.until(lambda: world.condition(world.environment())[1] == "ReferenceNotFound")
    assert world.pods() == []
    config = allowed("tool", conf="answer = 42")
    del config["metadata"]["labels"]
    world.cluster.create(CONFIG_MAPS, NAMESPACE, config)
    operator.look()
    await operator.until(lambda: world.condition(world.environment())[1] == "ReferenceRefused")
    assert world.pods() == []
    world.cluster.vanish(CONFIG_MAPS, NAMESPACE, "tool")
    world.cluster.create(CONFIG_MAPS, NAMESPACE, allowed("tool", conf="answer = 42"))
    operator.look()
    await operator.until(lambda: world.pool_is(1))


async def test_a_refused_change_leaves_the_pool_as_it_was(world: World) -> None:
    def told() -> dict[str, tuple[str, str]]:
        found = world.environment()["status"]["conditions"]
        assert len({each["observedGeneration"] for each in found}) == 1
        return {each["type"]: (each["status"], each["reason"]) for each in found}

    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (before,) = world.pods()
    bad = {"env": [{"name": "A", "secretKeyRef": {"name": "gone", "key": "k"}}]}
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", bad)
    await operator.until(lambda: world.condition(world.environment())[1] == "ReferenceNotFound")
    await operator.settle()
    assert [pod["metadata"]["name"] for pod in world.pods()] == [before["metadata"]["name"]]
    # Nothing goes on saying what was true of what it was before.
    assert told() == {
        "Ready": ("False", "ReferenceNotFound"),
        "PoolReady": ("False", "ReferenceNotFound"),
        "NetworkEnforced": ("Unknown", "ReferenceNotFound"),
    }
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"env": []})
    await operator.until(lambda: world.condition(world.environment()) == ("True", "Available"))
    assert [pod["metadata"]["name"] for pod in world.pods()] == [before["metadata"]["name"]]
    assert told() == {
        "Ready": ("True", "Available"),
        "PoolReady": ("True", "PoolFilled"),
        "NetworkEnforced": ("True", "Proven"),
    }


async def test_a_deleted_environment_takes_its_pool_and_leaves_its_sessions(world: World) -> None:
    world.apply_environment(pool={"size": 2})
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.phase() == "Running" and world.pool_is(2))
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    await operator.until(lambda: len(world.pods()) == 1)
    await operator.settle()
    assert world.served("s1")


async def test_the_pool_of_a_deleted_environment_goes_though_nobody_collects(world: World) -> None:
    world.apply_environment(pool={"size": 2})
    operator = world.start()
    await operator.until(lambda: world.pool_is(2))
    world.cluster.collects = False
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    await operator.until(lambda: world.pods() == [])


async def test_an_environment_made_anew_under_its_old_name_works(world: World) -> None:
    world.apply_environment(setup="echo old")
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    old = world.environment()["status"]["recipeHash"]
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    world.apply_environment(setup="echo new")
    await operator.until(lambda: world.pool_is(1))
    await operator.settle()
    assert world.environment()["status"]["recipeHash"] != old


async def test_the_same_environment_made_anew_gets_a_recipe_of_its_own(world: World) -> None:
    """The Secret of the deleted one has the same name, and is collected a little later."""
    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    await operator.settle()
    old = world.environment()["status"]["recipeHash"]
    world.cluster.collects = False
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    await operator.settle()
    world.cluster.writes.clear()
    uid = world.apply_environment()
    recipe = f"py-{old}"
    attempt = Write("create", "secrets", recipe)
    await operator.until(lambda: attempt in world.cluster.writes)
    world.cluster.collects = True
    world.cluster.act()
    await operator.until(lambda: world.pool_is(1))
    await operator.settle()
    secret = world.cluster.get(SECRETS, NAMESPACE, recipe)
    assert secret["metadata"]["ownerReferences"][0]["uid"] == uid


async def test_policies_that_somebody_deletes_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("environments", "grounds"):
        path = f"cloister_operator.controller.{module}.RECHECKED_AFTER_SECONDS"
        monkeypatch.setattr(path, 0.0)
    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    world.cluster.delete(NETWORK_POLICIES, NAMESPACE, "cloister-default-deny")
    operator.look()
    await operator.until(
        lambda: world.cluster.peek(NETWORK_POLICIES, NAMESPACE, "cloister-default-deny")
    )


# --- the network ---------------------------------------------------------------------------------


async def test_a_quota_is_told_and_tried_again(world: World) -> None:
    full = True

    def quota(_: int, write: Write) -> Fault | None:
        new_pod = (write.verb, write.plural) == ("create", "pods")
        return Fault.FORBIDDEN if full and new_pod else None

    world.apply_environment()
    world.apply_session()
    operator = world.start(Connection(world.cluster, quota))
    await operator.until(lambda: world.condition(world.session())[1] == "PodsRefused")
    await operator.until(
        lambda: world.condition(world.environment(), "PoolReady") == ("False", "PodsRefused")
    )
    environment = world.environment()
    assert world.condition(environment) == ("False", "PodsRefused")
    assert "exceeded quota" in environment["status"]["conditions"][0]["message"]
    full = False
    await operator.until(lambda: world.served("s1") and world.pool_is(1))
    await operator.until(lambda: world.condition(world.environment()) == ("True", "Available"))


async def test_an_open_network_stops_everything_until_it_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmer, "ENFORCEMENT_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(warmer, "_LONGEST_PAUSE", 0.05)
    world.sandboxes.reachable = ["10.96.0.1:443"]
    world.apply_environment()
    operator = world.start()

    def network() -> tuple[str, str]:
        return world.condition(world.environment(), "NetworkEnforced")

    await operator.until(lambda: network() == ("False", "NetworkNotEnforced"))
    assert "10.96.0.1:443" in world.environment()["status"]["conditions"][0]["message"]
    assert world.condition(world.environment()) == ("False", "NetworkNotEnforced")
    world.apply_session()
    await operator.until(lambda: world.condition(world.session())[1] == "NetworkNotEnforced")
    assert world.phase() == "Pending"
    assert world.pods(state="warm") == []
    assert world.pods(state="claimed") == []
    world.sandboxes.reachable = []
    await operator.until(lambda: network() == ("True", "Proven"))
    operator.look()
    await operator.until(lambda: world.served("s1") and world.pool_is(1))


async def test_a_setup_script_waits_until_the_network_is_proven(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmer, "ENFORCEMENT_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(warmer, "_LONGEST_PAUSE", 0.05)
    world.sandboxes.has_setup = True
    world.sandboxes.reachable = ["10.96.0.1:443"]
    world.apply_environment()
    operator = world.start()
    await operator.until(
        lambda: (
            world.condition(world.environment(), "NetworkEnforced")
            == ("False", "NetworkNotEnforced")
        )
    )
    assert world.sandboxes.prepared == {}
    world.sandboxes.reachable = []
    await operator.until(lambda: world.pool_is(1))
    (pod,) = world.pods()
    assert world.sandboxes.prepared[pod["metadata"]["uid"]] > 0


async def test_a_cold_session_does_not_run_on_an_open_network(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmer, "ENFORCEMENT_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(warmer, "_LONGEST_PAUSE", 0.05)
    world.sandboxes.reachable = ["10.0.0.9:8080"]
    world.apply_environment(pool={"size": 0})
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.condition(world.session())[1] == "NetworkNotEnforced")
    assert world.sandboxes.claimed == {}
    world.sandboxes.reachable = []
    await operator.until(lambda: world.served("s1"))


async def test_warm_pods_are_probed_again_by_a_new_operator(world: World) -> None:
    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    await operator.settle()
    (pod,) = world.pods()
    await operator.kill()
    again = world.start()
    await until(lambda: world.sandboxes.probes[pod["metadata"]["uid"]] == 2, pause=0.001)
    await again.settle()
    assert world.pool_is(1)


async def test_a_namespace_that_was_made_again_has_policies_before_it_has_pods(
    world: World,
) -> None:
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    labels = world.cluster.get(NAMESPACES, "", NAMESPACE)["metadata"]["labels"]
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    await operator.until(lambda: not world.pods())
    for each in world.cluster.peek_all(NETWORK_POLICIES, NAMESPACE):
        world.cluster.vanish(NETWORK_POLICIES, NAMESPACE, each["metadata"]["name"])
    world.cluster.vanish(NAMESPACES, "", NAMESPACE)
    world.cluster.create(NAMESPACES, "", {"metadata": {"name": NAMESPACE, "labels": labels}})
    before = len(world.cluster.writes)
    world.apply_environment(pool={"size": 1})
    await operator.until(lambda: world.pool_is(1))
    made = [each.plural for each in world.cluster.writes[before:]]
    assert made.index("networkpolicies") < made.index("pods")
