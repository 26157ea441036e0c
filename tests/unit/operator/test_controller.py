"""What the controller does to a cluster: environments, sessions, and their ends."""

import asyncio
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
    PODS,
    SECRETS,
    SESSIONS,
)
from cloister_operator.controller import warmer
from support.eventually import until
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]
MakeWorld = Callable[..., World]


def allowed(name: str, kind: str = "ConfigMap", **data: str) -> JSON:
    return {
        "metadata": {"name": name, "labels": {names.ALLOW_LABEL: "true"}},
        "kind": kind,
        "data": data,
    }


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
    world.apply_environment()
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (before,) = world.pods()
    bad = {"env": [{"name": "A", "secretKeyRef": {"name": "gone", "key": "k"}}]}
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", bad)
    await operator.until(lambda: world.condition(world.environment())[1] == "ReferenceNotFound")
    await operator.settle()
    assert [pod["metadata"]["name"] for pod in world.pods()] == [before["metadata"]["name"]]
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"env": []})
    await operator.until(lambda: world.condition(world.environment()) == ("True", "Available"))
    assert [pod["metadata"]["name"] for pod in world.pods()] == [before["metadata"]["name"]]


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


# --- sessions ------------------------------------------------------------------------------------


async def test_a_warm_claim_takes_three_writes_and_a_pods_certificate(world: World) -> None:
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (warm,) = world.pods()
    pod = warm["metadata"]["name"]
    world.cluster.writes.clear()
    uid = world.apply_session()
    await operator.until(lambda: world.served("s1"))
    mine = [x for x in world.cluster.writes if x.name in (pod, "s1", "s1-credentials")]
    assert mine == [
        Write("patch", "pods", pod),
        Write("create", "secrets", "s1-credentials"),
        Write("patch", "sessions/status", "s1"),
    ]
    status = world.session()["status"]
    assert status["podName"] == pod
    assert status["endpoint"] == f"{warm['status']['podIP']}:7443"
    assert status["serverName"] == f"session-{uid}.sandbox.cloister.dev"
    assert status["credentialsSecretName"] == "s1-credentials"
    assert status["recipeHash"] == world.environment()["status"]["recipeHash"]
    assert world.condition(world.session()) == ("True", "Claimed")
    claimed = world.cluster.get(PODS, NAMESPACE, pod)
    assert [x["uid"] for x in claimed["metadata"]["ownerReferences"]] == [uid]
    assert claimed["metadata"]["labels"][names.SESSION_LABEL] == uid
    await operator.until(lambda: world.pool_is(1))


async def test_a_session_of_the_api_takes_two_writes_and_leaves_no_secret(world: World) -> None:
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    pod = world.pods()[0]["metadata"]["name"]
    world.cluster.writes.clear()
    world.apply_session(annotations={names.ISSUED_BY: names.ISSUED_BY_API})
    await operator.until(lambda: world.served("s1"))
    mine = [x for x in world.cluster.writes if x.name in (pod, "s1", "s1-credentials")]
    assert mine == [Write("patch", "pods", pod), Write("patch", "sessions/status", "s1")]
    assert "credentialsSecretName" not in world.session()["status"]
    assert "s1-credentials" not in world.secrets()


async def test_without_a_warm_pod_one_is_made_for_the_session(world: World) -> None:
    world.apply_environment(pool={"size": 0})
    uid = world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    (pod,) = world.pods()
    made = next(x for x in world.cluster.writes if x == Write("create", "pods", x.name))
    assert made.name == pod["metadata"]["name"]
    assert [x["uid"] for x in pod["metadata"]["ownerReferences"]] == [uid]
    assert pod["metadata"]["labels"][names.STATE_LABEL] == "claimed"


async def test_a_pod_whose_recipe_went_with_its_environment_is_replaced(world: World) -> None:
    """It waits for a Secret that will not come; the session goes on under a new Environment."""
    world.cluster.starts_pods = False
    world.apply_environment(pool={"size": 0}, setup="echo old")
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.pods(state="claimed"))
    old = world.pods()[0]["metadata"]["labels"][names.RECIPE_LABEL]
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    await operator.until(lambda: f"py-{old}" not in world.secrets())
    await operator.advance(timedelta(minutes=1))
    await operator.until(
        lambda: world.condition(world.session()) == ("False", "EnvironmentNotFound")
    )
    assert world.pods() == []
    world.cluster.starts_pods = True
    world.apply_environment(pool={"size": 0}, setup="echo new")
    await operator.until(lambda: world.served("s1"))


async def test_a_warm_pod_whose_claim_conflicts_with_another_write_can_be_claimed_again(
    world: World,
) -> None:
    """The API server gives up when an object changes again and again; the pod is free all the
    while.
    """
    world.apply_environment(pool={"size": 1})
    conflicts = iter([Fault.CONFLICT])

    def fault(_count: int, write: Write) -> Fault | None:
        claims = write.verb == "patch" and write.plural == "pods"
        there = world.cluster.peek(SESSIONS, NAMESPACE, "s1")
        return next(conflicts, None) if claims and there else None

    operator = world.start(Connection(world.cluster, fault))
    await operator.until(lambda: world.pool_is(1))
    (warm,) = world.pods(state="warm")
    world.apply_session(annotations={names.ISSUED_BY: names.ISSUED_BY_API})
    await operator.until(lambda: world.served("s1"))
    assert list(conflicts) == []
    assert world.session()["status"]["podUID"] == warm["metadata"]["uid"]


async def test_no_pods_are_made_again_and_again_for_an_environment_that_is_gone(
    world: World,
) -> None:
    """Its deletion was not heard of: the pool's pods go, one look at the server says why."""
    world.apply_environment(pool={"size": 2})
    operator = world.start()
    await operator.until(lambda: world.pool_is(2))
    ghost = operator.context.environments
    observe = operator.controller.observe
    operator.controller.observe = lambda *_: None  # type: ignore[method-assign]
    world.cluster.delete(ENVIRONMENTS, NAMESPACE, "py")
    await operator.until(lambda: not world.pods())
    await operator.settle()
    operator.controller.observe = observe  # type: ignore[method-assign]
    assert ghost.get(NAMESPACE, "py") is None
    assert world.pods() == []
    made = [each for each in world.cluster.writes if (each.verb, each.plural) == ("create", "pods")]
    assert len(made) <= 4


async def test_many_sessions_get_a_pod_each(world: World) -> None:
    world.apply_environment(pool={"size": 5})
    operator = world.start()
    await operator.until(lambda: world.pool_is(5))
    for n in range(15):
        world.apply_session(f"s{n}")
    await operator.until(lambda: all(world.served(f"s{n}") for n in range(15)))
    await operator.until(lambda: world.pool_is(5))
    await operator.settle()
    assert list(world.problems()) == []
    assert world.leaks() == set()


async def test_what_a_session_brings_reaches_its_pod(world: World) -> None:
    secret = allowed("keys", "Secret", token="c2VzYW1l")
    world.cluster.create(SECRETS, NAMESPACE, secret)
    world.apply_environment()
    uid = world.apply_session(
        env=[
            {"name": "TOKEN", "secretKeyRef": {"name": "keys", "key": "token"}},
            {"name": "A", "value": "1"},
        ],
        files=[{"path": "/workspace/task.md", "content": "do it", "readOnly": False}],
    )
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    payload = world.sandboxes.payloads[uid]
    assert payload.env == {"TOKEN": "sesame", "A": "1"}
    assert [(x.path, x.mode, x.content) for x in payload.files] == [
        ("/workspace/task.md", 0o644, b"do it")
    ]
    assert payload.session_name == "s1"


async def test_a_session_with_a_wrong_reference_fails_and_names_the_field(world: World) -> None:
    world.apply_environment(pool={"size": 0})
    world.apply_session(env=[{"name": "A", "secretKeyRef": {"name": "gone", "key": "k"}}])
    operator = world.start()
    await operator.until(lambda: world.phase() == "Failed")
    assert world.condition(world.session()) == ("False", "ReferenceNotFound")
    assert "spec.env[0].secretKeyRef" in world.session()["status"]["conditions"][0]["message"]
    await operator.settle()
    assert world.pods() == []


async def test_a_session_waits_for_its_environment(world: World) -> None:
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.condition(world.session())[1] == "EnvironmentNotFound")
    world.apply_environment()
    await operator.until(lambda: world.served("s1"))


async def test_sessions_beyond_the_maximum_wait_in_their_order(world: World) -> None:
    world.apply_environment(pool={"size": 1, "maxSessions": 2})
    operator = world.start()
    for n in range(4):
        world.apply_session(f"s{n}")
        world.clock.now += timedelta(seconds=1)
    await operator.until(lambda: world.served("s0") and world.served("s1"))
    for waiting in ("s2", "s3"):
        await operator.until(
            lambda name=waiting: (  # type: ignore[misc]
                world.condition(world.session(name))[1] == "Queued"
            )
        )
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await operator.until(lambda: world.served("s2"))
    await operator.settle()
    assert world.phase("s3") == "Pending"
    assert world.session("s3")["status"]["queuePosition"] == 1
    assert "queuePosition" not in world.session("s2")["status"]
    world.cluster.delete(SESSIONS, NAMESPACE, "s0")
    await operator.until(lambda: world.served("s3"))


async def test_a_pod_that_refuses_the_claim_serves_nobody_and_another_is_taken(
    world: World,
) -> None:
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (bad,) = world.pods()
    world.sandboxes.refusing.add(bad["metadata"]["uid"])
    world.cluster.ends_pods = False
    world.apply_session()
    await operator.until(lambda: world.served("s1"))
    assert world.session()["status"]["podName"] != bad["metadata"]["name"]
    world.cluster.ends_pods = True
    world.cluster.act()
    await operator.settle()
    assert world.cluster.peek(PODS, NAMESPACE, bad["metadata"]["name"]) is None


# --- ends ----------------------------------------------------------------------------------------


async def running(world: World, **lifecycle: str) -> Any:
    """An operator with one running session."""
    world.apply_environment(lifecycle=lifecycle)
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.served("s1") and world.pool_is(1))
    await operator.settle()
    return operator


def ended(world: World, phase: str, reason: str) -> bool:
    found = world.session()
    return (
        world.phase() == phase
        and world.condition(found) == ("False", reason)
        and world.pods(session=found["metadata"]["uid"]) == []
    )


async def test_an_idle_session_ends_only_when_its_exec_server_says_so(world: World) -> None:
    operator = await running(world, idleTimeout="10m")
    uid = world.session()["metadata"]["uid"]
    await operator.advance(timedelta(minutes=9))
    assert world.sandboxes.asked == []
    world.sandboxes.idle[uid] = timedelta(minutes=2)
    await operator.advance(timedelta(minutes=2))
    assert world.sandboxes.asked == [uid]
    assert world.phase() == "Running"
    assert world.session()["status"]["lastActivityTime"] == "2026-05-01T12:09:00Z"
    assert world.session()["status"]["runningSeconds"] == 660
    assert world.session()["status"]["activeSeconds"] == 7
    world.sandboxes.busy.add(uid)
    await operator.advance(timedelta(minutes=10))
    assert world.phase() == "Running"
    world.sandboxes.busy.clear()
    world.sandboxes.idle[uid] = timedelta(minutes=10)
    await operator.advance(timedelta(minutes=10))
    await operator.until(lambda: ended(world, "Terminated", "IdleTimeout"))
    assert world.session()["status"]["runningSeconds"] == 31 * 60


async def test_being_idle_for_a_part_of_a_second_is_asked_once(world: World) -> None:
    operator = await running(world, idleTimeout="10m")
    uid = world.session()["metadata"]["uid"]
    world.sandboxes.idle[uid] = timedelta(minutes=9, seconds=59, milliseconds=500)
    world.clock.now += timedelta(milliseconds=300)
    await operator.advance(timedelta(minutes=10))
    assert world.sandboxes.asked == [uid]
    assert world.phase() == "Running"


async def test_a_session_ends_with_its_lifetime(world: World) -> None:
    operator = await running(world, maxLifetime="1h", idleTimeout="2h")
    uid = world.session()["metadata"]["uid"]
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: ended(world, "Terminated", "MaxLifetime"))
    status = world.session()["status"]
    assert (status["endedAt"], status["runningSeconds"]) == ("2026-05-01T13:00:00Z", 3600)
    assert (world.sandboxes.asked, status["activeSeconds"]) == ([uid], 7)


async def test_a_pod_that_does_not_answer_holds_no_end_up(world: World) -> None:
    operator = await running(world, maxLifetime="1h", idleTimeout="2h")
    world.sandboxes.answering.clear()
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: ended(world, "Terminated", "MaxLifetime"))
    assert world.session()["status"]["runningSeconds"] == 3600


def disrupted(reason: str) -> JSON:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason}


TERMINATED = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"phase": "Failed", "containerStatuses": [{"state": TERMINATED}]}, "OOMKilled"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}, "Evicted"),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": 'Usage of EmptyDir volume "workspace" exceeds the limit "1Gi".',
            },
            "DiskFull",
        ),
        ({"phase": "Failed", "reason": "Terminated", "message": "node shutdown"}, "NodeLost"),
        ({"phase": "Failed", "conditions": [disrupted("DeletionByPodGC")]}, "NodeLost"),
        (
            {
                "phase": "Failed",
                "containerStatuses": [{"state": {"terminated": {"exitCode": 1}}}],
            },
            "PodEnded",
        ),
        ({"phase": "Succeeded"}, "PodEnded"),
    ],
)
async def test_a_session_fails_with_its_pod_and_says_why(
    world: World, status: JSON, reason: str
) -> None:
    operator = await running(world)
    pod = world.session()["status"]["podName"]
    world.cluster.set_pod_status(NAMESPACE, pod, **status)
    await operator.until(lambda: ended(world, "Failed", reason))
    await operator.settle()
    assert world.cluster.peek(PODS, NAMESPACE, pod) is None


async def test_a_session_whose_pod_is_deleted_fails(world: World) -> None:
    operator = await running(world)
    world.cluster.delete(PODS, NAMESPACE, world.session()["status"]["podName"])
    await operator.until(lambda: ended(world, "Failed", "PodDeleted"))


async def test_a_session_whose_pod_went_while_no_operator_ran_fails(world: World) -> None:
    operator = await running(world)
    await operator.kill()
    world.cluster.vanish(PODS, NAMESPACE, world.session()["status"]["podName"])
    again = world.start()
    await again.until(lambda: ended(world, "Failed", "PodDeleted"))


async def test_a_session_whose_pod_cannot_be_set_up_fails(world: World) -> None:
    world.sandboxes.setup_problem = "setup ended with code 3"
    world.apply_environment(pool={"size": 0})
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: ended(world, "Failed", "SetupFailed"))
    await operator.settle()
    assert world.pods() == []


async def test_a_deleted_session_takes_its_pod_along(world: World) -> None:
    operator = await running(world)
    world.cluster.collects = False
    pod = world.session()["status"]["podName"]
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    await operator.until(lambda: world.cluster.peek(PODS, NAMESPACE, pod) is None)
    world.cluster.collects = True
    await operator.advance(timedelta(seconds=1))
    world.cluster.act()
    await operator.settle()
    assert world.leaks() == set()


async def test_a_session_that_somebodys_finalizer_keeps_has_no_pod(world: World) -> None:
    operator = await running(world)
    world.cluster.collects = False
    pod = world.session()["status"]["podName"]
    await operator.kill()
    gone = {"op": "add", "path": "/metadata/deletionTimestamp", "value": "2026-01-01T00:00:00Z"}
    world.cluster.json_patch(SESSIONS, NAMESPACE, "s1", [gone])
    failing = iter([Fault.REFUSED] * 3)

    def fault(_: int, write: Write) -> Fault | None:
        return next(failing, None) if (write.verb, write.plural) == ("delete", "pods") else None

    operator = world.start(Connection(world.cluster, fault))
    await operator.until(lambda: world.cluster.peek(PODS, NAMESPACE, pod) is None)


async def test_an_ended_session_is_kept_for_a_while_and_then_deleted(make_world: MakeWorld) -> None:
    world = make_world(ended_session_ttl_seconds=600.0)
    operator = await running(world, maxLifetime="1h", idleTimeout="2h")
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: ended(world, "Terminated", "MaxLifetime"))
    await operator.advance(timedelta(seconds=599))
    assert world.phase() == "Terminated"
    await operator.advance(timedelta(seconds=1))
    await operator.until(lambda: world.phase() == "")
    await operator.settle()
    assert world.leaks() == set()


async def test_an_ended_session_stays_ended_whatever_happens(world: World) -> None:
    operator = await running(world, maxLifetime="1h")
    await operator.advance(timedelta(hours=1))
    await operator.until(lambda: ended(world, "Terminated", "MaxLifetime"))
    world.cluster.patch_spec(SESSIONS, NAMESPACE, "s1", {"lifecycle": {"maxLifetime": "30m"}})
    await operator.settle()
    await operator.kill()
    again = world.start()
    await again.settle()
    assert ended(world, "Terminated", "MaxLifetime")


async def test_the_same_session_made_anew_gets_credentials_of_its_own(world: World) -> None:
    """The Secret of the deleted one has the same name, and is collected a little later."""
    operator = await running(world)
    before = world.cluster.get(SECRETS, NAMESPACE, "s1-credentials")["data"]["tls.crt"]
    world.cluster.collects = False
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    world.cluster.writes.clear()
    uid = world.apply_session()
    attempt = Write("create", "secrets", "s1-credentials")
    await operator.until(lambda: attempt in world.cluster.writes)
    world.cluster.collects = True
    world.cluster.act()
    await operator.until(lambda: world.served("s1"))
    await operator.settle()
    secret = world.cluster.get(SECRETS, NAMESPACE, "s1-credentials")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == uid
    assert secret["data"]["tls.crt"] != before


async def test_a_secret_of_somebody_else_is_left_alone(world: World) -> None:
    own = {"metadata": {"name": "s1-credentials"}, "data": {"mine": "eA=="}}
    world.cluster.create(SECRETS, NAMESPACE, own)
    world.apply_environment()
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.phase() == "Failed")
    assert "s1-credentials" in world.session()["status"]["conditions"][0]["message"]
    assert world.cluster.get(SECRETS, NAMESPACE, "s1-credentials")["data"] == own["data"]
    await operator.settle()
    assert world.pods(state="claimed") == []


async def test_a_pod_of_another_namespace_is_nobodys_here(make_world: MakeWorld) -> None:
    """Whoever may make pods there could otherwise get the files and variables of a session here."""
    world = make_world(sandbox_namespaces=(NAMESPACE, "other"))
    world.cluster.create(NAMESPACES, "", {"metadata": {"name": "other"}})
    world.apply_environment(pool={"size": 0})
    uid = world.apply_session()
    labels = {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.ENVIRONMENT_LABEL: "py",
        names.STATE_LABEL: "claimed",
        names.SESSION_LABEL: uid,
    }
    intruder = {"metadata": {"name": "intruder", "labels": labels}, "spec": {"volumes": []}}
    world.cluster.create(PODS, "other", intruder)
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    await operator.settle()
    assert world.cluster.peek(PODS, "other", "intruder") is not None


async def test_a_pods_label_deletes_no_secret(world: World) -> None:
    """A pod that somebody else made names a recipe that is no recipe."""
    world.cluster.create(SECRETS, NAMESPACE, {"metadata": {"name": "py-password"}})
    world.apply_environment()
    labels = {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.ENVIRONMENT_LABEL: "py",
        names.STATE_LABEL: "starting",
        names.RECIPE_LABEL: "password",
    }
    intruder = {"metadata": {"name": "intruder", "labels": labels}, "spec": {"volumes": []}}
    world.cluster.create(PODS, NAMESPACE, intruder)
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    await operator.until(lambda: world.cluster.peek(PODS, NAMESPACE, "intruder") is None)
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"setup": "echo new"})
    await operator.until(lambda: len(world.pods()) == 1 and world.pool_is(1))
    await operator.settle()
    assert "py-password" in world.secrets()


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


async def test_a_server_that_is_away_for_a_while_costs_nothing(world: World) -> None:
    operator = await running(world)
    operator.connection.away = True
    world.apply_session("s2")
    operator.look()
    for _ in range(50):
        await asyncio.sleep(0)
    operator.connection.away = False
    await operator.controller._list()
    await operator.until(lambda: world.served("s2") and world.served("s1"))
    await operator.until(lambda: world.pool_is(1))
    assert list(world.problems()) == []
