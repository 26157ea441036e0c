"""What the controller does until a session has its pod."""

from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    PODS,
    SECRETS,
    SESSIONS,
)
from cloister_operator.errors import NotFoundError, TransientError
from cloister_operator.plan.said import CONTRADICTED
from cloister_operator.plan.session import SessionPlan, Step
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.operator_objects import NAMESPACE, allowed


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


async def test_what_another_operator_tells_a_session_that_waits_is_not_written_over_at_once(
    world: World,
) -> None:
    """Both may believe that they lead, and know different things."""
    uid = world.apply_session()
    operator = world.start()
    mine = ("False", "EnvironmentNotFound")
    await operator.until(lambda: world.condition(world.session()) == mine)
    # It has heard that this was written, too.
    await operator.settle()
    said = world.session()["status"]["conditions"]
    theirs = [{**each, "reason": "Queued", "message": "number 1 in line"} for each in said]
    world.cluster.patch_status(SESSIONS, NAMESPACE, "s1", {"conditions": theirs})
    await operator.advance(CONTRADICTED - timedelta(seconds=1))
    assert world.condition(world.session()) == ("False", "Queued")
    await operator.advance(timedelta(seconds=1))
    await operator.until(lambda: world.condition(world.session()) == mine)
    # Another Session of that name was told nothing yet.
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    assert world.apply_session() != uid
    await operator.until(lambda: world.condition(world.session()) == mine)


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
    world.apply_environment(pool={"size": 1, "maxSessions": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    (bad,) = world.pods()
    world.sandboxes.refusing.add(bad["metadata"]["uid"])
    world.cluster.ends_pods = False
    world.apply_session()
    key = ("session", NAMESPACE, "s1")
    # Whatever happens meanwhile: were all pods to refuse it, they would be made for it without end.
    await operator.until(lambda: key in operator.context.queue._not_before)
    await operator.until(lambda: world.served("s1"))
    assert world.session()["status"]["podName"] != bad["metadata"]["name"]
    world.cluster.ends_pods = True
    world.cluster.act()
    await operator.settle()
    assert world.cluster.peek(PODS, NAMESPACE, bad["metadata"]["name"]) is None
    assert not operator.context.placed


async def test_a_session_that_all_pods_refuse_tries_them_ever_more_seldom(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image may have any exec server."""
    monkeypatch.setattr("cloister_operator.controller.handovers.REFUSED_PAUSE", 0.01)
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    pauses: list[float | None] = []
    hand_overs = operator.controller._sessions._hand_overs
    hand_over = hand_overs.hand_over

    async def refused(*given: Any) -> None:
        try:
            world.sandboxes.refusing.update(each["metadata"]["uid"] for each in world.pods())
            await hand_over(*given)
        except TransientError as error:
            pauses.append(error.retry_after)
            if len(pauses) == 5:
                hand_overs.hand_over = hand_over  # type: ignore[method-assign]
            raise

    monkeypatch.setattr(hand_overs, "hand_over", refused)
    world.apply_session()
    await operator.until(lambda: len(pauses) == 5)
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16]
    world.sandboxes.refusing.clear()
    await operator.until(lambda: world.served("s1"))
    await operator.until(lambda: not operator.controller._sessions._starts._refused)


async def test_a_session_that_is_gone_is_looked_after_no_more_though_no_watch_tells(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.condition(world.session())[1] == "EnvironmentNotFound")
    sessions = operator.context.sessions
    known = sessions.get(NAMESPACE, "s1")
    assert known is not None
    monkeypatch.setattr(operator.controller, "observe", lambda *_: None)
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    plan = SessionPlan(Step.WAIT, reason="Queued", message="number 1 in line")
    with pytest.raises(NotFoundError):
        await operator.controller._sessions._statuses.waiting(known, plan)
    assert sessions.get(NAMESPACE, "s1") is None


async def test_a_pod_that_never_starts_is_replaced_by_another(world: World) -> None:
    """Its node may be to blame, and says so in events alone."""
    world.cluster.starts_pods = False
    world.apply_environment(pool={"size": 0})
    uid = world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.condition(world.session())[1] == "Starting")
    (stuck,) = world.pods(session=uid)
    await operator.advance(timedelta(minutes=6))
    await operator.until(lambda: world.condition(world.session())[1] == "PodStuck")
    await operator.advance(timedelta(minutes=10))
    await operator.until(lambda: stuck not in world.pods() and world.pods(session=uid))
    world.cluster.starts_pods = True
    world.cluster.act()
    await operator.until(lambda: world.served("s1"))
