"""Gauges and counters of what there is: bounded, and gone when what they are about is."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator import metrics
from cloister_operator.api import conditions
from cloister_operator.api.conditions import timestamp
from cloister_operator.api.session import Phase, SessionObject, SessionStatus
from cloister_operator.cluster.resources import ENVIRONMENTS
from cloister_operator.controller import observe
from cloister_operator.controller.observe import Gauges, Health
from cloister_operator.controller.usage import Usage
from cloister_operator.plan import meters
from cloister_operator.plan.meters import Reading
from support.fake_operator import Clock, World
from support.operator_objects import NAMESPACE, NOW, session_body

SECOND = timedelta(seconds=1)


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


def of(environment: str) -> dict[str, str]:
    return {"namespace": NAMESPACE, "environment": environment}


def session(name: str, uid: str, status: SessionStatus, environment: str) -> SessionObject:
    body: dict[str, Any] = session_body(name, environment)
    body["metadata"] |= {"uid": uid, "resourceVersion": "1", "generation": 1}
    return SessionObject.parse(body).model_copy(update={"status": status})


async def test_pools_sessions_and_claims_are_told(make_world: Any) -> None:
    world: World = make_world()
    world.apply_environment("told", pool={"size": 2})
    operator = world.start()
    await operator.until(lambda: world.pool_is(2, "told"))
    world.apply_session("a", "told")
    world.apply_session("b", "never-made")
    await operator.until(lambda: world.served("a") and world.pool_is(2, "told"))
    gauges = Gauges(operator.context)
    gauges.look()
    assert value("cloister_pool_pods", state="warm", **of("told")) == 2
    assert value("cloister_pool_pods", state="claimed", **of("told")) == 1
    assert value("cloister_pool_wanted_pods", **of("told")) == 2
    assert value("cloister_environment_condition", condition="Ready", **of("told")) == 1
    assert value("cloister_sessions", phase="Running", **of("told")) == 1
    assert value("cloister_claims_total", start="warm", outcome="ok", **of("told")) == 1
    assert value("cloister_environment_condition", condition="NetworkEnforced", **of("told")) == 1
    raw = world.environment("told")
    (condition,) = [x for x in raw["status"]["conditions"] if x["type"] == "NetworkEnforced"]
    condition["status"] = "Unknown"
    raw["metadata"]["resourceVersion"] = "1000000"
    operator.context.environments.put(raw)
    gauges.look()
    assert (
        value("cloister_environment_condition", condition="NetworkEnforced", **of("told")) is None
    )
    # Anybody may name an Environment that is not there.
    assert value("cloister_sessions", phase="Pending", **of("")) == 1
    assert value("cloister_sessions", phase="Pending", **of("never-made")) is None
    await world.close()


def test_what_happens_first_is_an_increase() -> None:
    """Prometheus knows of none where a counter is there only once it counts."""
    observe.begin("1.2.3")
    for reason in conditions.LOSSES:
        assert value("cloister_failures_total", kind="session", reason=reason) is not None
        assert value("cloister_failures_total", kind="recovery", reason=reason) is not None
    assert value("cloister_failures_total", kind="pod", reason="SetupFailed") is not None
    assert value("cloister_events_total", outcome="dropped") is not None
    assert value("cloister_build_info", version="1.2.3") == 1
    metrics.BUILD.clear()


async def test_an_environments_counters_begin_before_its_sessions_do(make_world: Any) -> None:
    world: World = make_world()
    world.apply_environment("fresh", pool={"size": 0})
    operator = world.start()
    await operator.until(lambda: operator.context.environments.all())
    Gauges(operator.context).look()
    for start in ("warm", "cold", "resumed"):
        assert value("cloister_claims_total", start=start, outcome="ok", **of("fresh")) == 0
    for outcome in ("failed", "deleted"):
        assert value("cloister_claims_total", start="none", outcome=outcome, **of("fresh")) == 0
    assert value("cloister_egress_requests_total", verdict="denied", **of("fresh")) == 0
    await world.close()
    metrics.forget_environment(*of("fresh").values())


async def test_pods_that_fail_one_after_the_other_are_counted_until_one_is_warm(
    make_world: Any,
) -> None:
    """A pod that failed goes after half a minute: nobody would see it in the figures of pods."""
    world: World = make_world()
    world.sandboxes.setup_problem = "setup ended with code 3"
    world.apply_environment("broken", pool={"size": 1})
    operator = world.start()
    gauges = Gauges(operator.context)

    def failed() -> float | None:
        gauges.look()
        return value("cloister_pool_failed_starts", **of("broken"))

    await operator.until(lambda: failed() == 1)
    for _ in range(12):
        await operator.advance(timedelta(seconds=31))
    assert (failed() or 0) >= 3
    world.sandboxes.setup_problem = ""
    await operator.advance(timedelta(minutes=5))
    await operator.until(lambda: world.pool_is(1, "broken"))
    await operator.settle()
    assert failed() == 0
    await world.close()
    metrics.forget_environment(*of("broken").values())


async def test_failures_are_not_counted_while_there_is_no_recipe_to_try(make_world: Any) -> None:
    """None would ever be warm and end the count, and its alert."""
    world: World = make_world()
    world.sandboxes.setup_problem = "setup ended with code 3"
    world.apply_environment("undone", pool={"size": 1})
    operator = world.start()
    gauges = Gauges(operator.context)

    def failed() -> float | None:
        gauges.look()
        return value("cloister_pool_failed_starts", **of("undone"))

    await operator.until(lambda: failed() == 1)
    missing = [{"path": "/x", "configMapKeyRef": {"name": "missing", "key": "x"}}]
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "undone", {"files": missing})
    await operator.until(lambda: failed() == 0)
    await world.close()
    metrics.forget_environment(*of("undone").values())


def test_who_leads_no_more_says_nothing_of_what_it_led() -> None:
    """Alerts go by the worst that any process says."""
    metrics.ADMISSION_ENFORCED.labels(NAMESPACE).set(0)
    metrics.POOL_FAILURES.labels(NAMESPACE, "py").set(5)
    metrics.CA_UNTOLD.set(3)
    metrics.forget_gauges()
    assert value("cloister_admission_enforced", namespace=NAMESPACE) is None
    assert value("cloister_pool_failed_starts", **of("py")) is None
    assert value("cloister_ca_untold_pods") == 0


async def test_only_a_queue_that_runs_can_be_stuck(make_world: Any) -> None:
    """A process that does not lead gathers keys and handles none: it is well."""
    world: World = make_world()
    operator = world.start()
    queue = operator.context.queue
    await operator.until(lambda: queue.runs)
    health = Health(operator.context)
    assert health.live() is None
    queue.add(("session", NAMESPACE, "s1"))
    health._moved -= 2 * observe.STUCK_SECONDS
    assert "none was handled" in (health.live() or "")
    await world.close()
    assert not queue.runs
    queue.add(("session", NAMESPACE, "s2"))
    assert health.live() is None


async def test_the_series_of_an_environment_go_with_it(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "KEPT_LOOKS", 2)
    world: World = make_world()
    world.apply_environment("passing", pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1, "passing"))
    gauges = Gauges(operator.context)
    gauges.look()
    raw = world.environment("passing")
    operator.context.environments.remove(raw)
    for _ in range(2):
        gauges.look()
        # Prometheus has yet to read the last of the counters.
        assert value("cloister_pool_wanted_pods", **of("passing")) == 1
    gauges.look()
    assert not [
        sample
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.labels.get("environment") == "passing"
    ]
    await world.close()


SPANS = st.integers(0, 10**7).map(lambda us: timedelta(microseconds=us))


@given(st.lists(st.tuples(SPANS, SPANS, st.integers(0, 3)), max_size=8))
def test_what_was_seen_is_counted_once(runs: list[tuple[timedelta, timedelta, int]]) -> None:
    """Each run: how long it lasts, the pause after it, how often it is counted meanwhile."""
    clock = Clock()
    usage = Usage(clock)
    usage.begin()
    labels = of("used")
    metrics.forget_environment(*labels.values())
    status = SessionStatus()
    now = session("s", "u", status, "used")
    usage.changed(None, now)

    def becomes(**changes: Any) -> None:
        nonlocal now
        before = now
        now = session("s", "u", before.status.model_copy(update=changes), "used")
        usage.changed(before, now)

    total = timedelta()
    for length, pause, looks in runs:
        becomes(phase=Phase.RUNNING, **meters.started(now.status, clock()))
        for _ in range(looks):
            clock.now += length / (looks + 1)
            usage.count()
        clock.now += length - looks * (length / (looks + 1))
        total += length
        reading = Reading(clock(), timedelta(), length)
        becomes(phase=Phase.SUSPENDED, **meters.stopped(now.status, clock(), reading))
        clock.now += pause
        usage.count()
    counted = value("cloister_session_running_seconds_total", **labels) or 0.0
    assert abs(counted - total.total_seconds()) < 0.001 * (len(runs) + 1)
    worked = value("cloister_session_active_seconds_total", **labels) or 0.0
    assert worked == now.status.active_seconds
    metrics.forget_environment(*labels.values())


def test_what_another_counted_is_not_counted_again() -> None:
    clock = Clock()
    usage, labels = Usage(clock), of("handed")
    since = {
        "phase": Phase.RUNNING,
        "started_at": timestamp(NOW),
        **meters.started(SessionStatus(), NOW - timedelta(hours=1)),
    }
    before = session("s", "u", SessionStatus().model_copy(update=since), "handed")
    usage.changed(None, before)
    clock.now += 10 * SECOND
    usage.begin()
    clock.now += 5 * SECOND
    usage.count()
    assert value("cloister_session_running_seconds_total", **labels) == pytest.approx(5)
    usage.end()
    clock.now += 5 * SECOND
    usage.changed(before, None)
    assert value("cloister_session_running_seconds_total", **labels) == pytest.approx(5)
    assert usage.environments() == set()
    metrics.forget_environment(*labels.values())
