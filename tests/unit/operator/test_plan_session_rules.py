"""What holds for every session, whatever it has come to: deadlines, limits, pauses, promises."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.api.session import Phase
from cloister_operator.errors import PermanentError
from cloister_operator.plan.session import (
    Observed,
    Promise,
    Step,
    expires_at,
    limits,
    plan_session,
    suspends_when_idle,
)
from support.operator_objects import NOW, environment, pod, session
from support.session_plans import (
    DECLINED,
    KEPT,
    OOM,
    OPEN,
    SETUP,
    TTL,
    ago,
    mine,
    plan,
    recovering,
    running,
)


def test_a_session_looks_again_at_its_next_deadline() -> None:
    assert plan(running(), mine()).look_again == NOW + timedelta(minutes=29)
    soon_over = running(startedAt=ago(hours=23, minutes=50))
    assert plan(soon_over, mine()).look_again == NOW + timedelta(minutes=10)
    ended = session(status={"phase": "Failed", "endedAt": ago(minutes=1)})
    assert plan(ended).look_again == NOW + timedelta(minutes=59)


@pytest.mark.parametrize(
    ("own", "environments", "idle", "life"),
    [
        pytest.param({}, {}, 1800, 86400, id="defaults"),
        pytest.param({"idleTimeout": "5m"}, {}, 300, 86400, id="shorter"),
        pytest.param({"idleTimeout": "2h"}, {}, 1800, 86400, id="longer does not count"),
        pytest.param({}, {"maxLifetime": "1h30m"}, 1800, 5400, id="the environment's"),
        pytest.param(
            {"maxLifetime": "90s"}, {"maxLifetime": "1h", "idleTimeout": "10s"}, 10, 90, id="each"
        ),
    ],
)
def test_limits_are_the_shorter_ones(
    own: dict[str, str], environments: dict[str, str], idle: int, life: int
) -> None:
    found = limits(session(lifecycle=own), environment(lifecycle=environments))
    assert found == (timedelta(seconds=idle), timedelta(seconds=life))


def test_a_session_without_its_environment_keeps_limits() -> None:
    assert limits(session(lifecycle={"idleTimeout": "5m"}), None) == (
        timedelta(minutes=5),
        timedelta(hours=24),
    )


def test_a_duration_that_is_none_names_its_field() -> None:
    with pytest.raises(PermanentError) as caught:
        limits(session(), environment(lifecycle={"maxLifetime": "soon"}))
    assert caught.value.field == "spec.lifecycle.maxLifetime"


def test_a_session_expires_when_its_lifetime_is_over() -> None:
    assert expires_at(session(), environment()) is None
    expected = NOW - timedelta(minutes=5) + timedelta(hours=24)
    assert expires_at(running(), environment()) == expected


def test_losses_in_a_row_are_followed_by_longer_and_longer_pauses() -> None:
    waits = []
    for losses in range(2, 9):
        again = plan(recovering(losses)).look_again
        assert again
        waits.append((again - NOW).total_seconds())
    assert waits == [2, 4, 8, 16, 32, 64, 128]


def test_only_a_kept_workspace_lets_an_idle_session_be_suspended() -> None:
    suspends = environment(lifecycle={"onIdle": "Suspend"})
    assert suspends_when_idle(running(**KEPT), suspends)
    assert not suspends_when_idle(running(), suspends)
    assert not suspends_when_idle(running(**KEPT), environment())
    assert not suspends_when_idle(running(**KEPT), None)


PODS = st.one_of(
    st.none(),
    st.builds(
        lambda name, deleting, end, state: pod(
            name, deleting=deleting, end=end, state=state, session_uid="uid-of-s1"
        ),
        st.sampled_from(["p1", "old"]),
        st.booleans(),
        st.sampled_from([None, OOM]),
        st.just("claimed"),
    ),
)
STATUS = st.fixed_dictionaries(
    {
        "phase": st.sampled_from([each.value for each in Phase]),
        "workspaceClaim": st.sampled_from([None, "py-1"]),
        "podUID": st.sampled_from([None, "uid-of-old"]),
        "recoveries": st.integers(0, 9),
        "failedAt": st.one_of(st.none(), st.integers(0, 1000).map(lambda s: ago(seconds=s))),
        "startedAt": st.one_of(st.none(), st.integers(0, 100_000).map(lambda s: ago(seconds=s))),
        "endedAt": st.one_of(st.none(), st.integers(0, 10_000).map(lambda s: ago(seconds=s))),
    }
)
STATES = st.sampled_from(["Running", "Suspended"])
OBSERVED = st.builds(
    Observed,
    environment=st.sampled_from([None, environment(), environment(pool={"maxSessions": 1})]),
    pod=PODS,
    pod_warm=st.booleans(),
    pod_failure=st.sampled_from([None, SETUP, OPEN]),
    others=st.integers(0, 3),
    environment_problem=st.sampled_from([None, OPEN]),
)


@given(STATES, STATUS, OBSERVED)
def test_an_ended_session_never_runs_again(
    state: str, status: dict[str, Any], observed: Observed
) -> None:
    subject = session(status=status, state=state)
    made = plan_session(subject, observed, TTL, NOW)
    if subject.status.phase.ended:
        assert made.step in (Step.WAIT, Step.CLEAN_UP, Step.FORGET)
        assert made.phase is subject.status.phase


@given(STATES, STATUS, OBSERVED)
def test_a_session_with_a_pod_gets_no_other(
    state: str, status: dict[str, Any], observed: Observed
) -> None:
    made = plan_session(session(status=status, state=state), observed, TTL, NOW)
    if made.step is Step.GET_POD:
        assert observed.pod is None or observed.pod.deleting


@given(STATES, STATUS, OBSERVED)
def test_only_a_usable_pod_is_handed_over(
    state: str, status: dict[str, Any], observed: Observed
) -> None:
    made = plan_session(session(status=status, state=state), observed, TTL, NOW)
    if made.step is Step.HAND_OVER:
        assert observed.pod is not None
        assert observed.pod.alive
        assert observed.pod_warm
        assert observed.pod_failure is None


@given(STATES, STATUS, OBSERVED)
def test_who_waits_says_why_or_until_when(
    state: str, status: dict[str, Any], observed: Observed
) -> None:
    made = plan_session(session(status=status, state=state), observed, TTL, NOW)
    if made.step is Step.WAIT:
        assert made.look_again or (made.reason and made.message)
    if made.step is Step.END:
        assert made.phase.ended
        assert made.reason
        assert made.message


@given(STATES, STATUS, OBSERVED)
def test_a_volume_never_gets_a_second_pod(
    state: str, status: dict[str, Any], observed: Observed
) -> None:
    made = plan_session(session(status=status, state=state), observed, TTL, NOW)
    if made.step is Step.GET_POD and status["workspaceClaim"]:
        assert observed.pod is None


@given(STATES, STATUS, OBSERVED)
def test_work_is_given_up_only_for_good_reasons(
    state: str, status: dict[str, Any], observed: Observed
) -> None:
    made = plan_session(session(status=status, state=state), observed, TTL, NOW)
    if made.phase is Phase.FAILED and made.step is Step.END and status["workspaceClaim"]:
        assert status["recoveries"] >= 8
    if made.step is Step.SUSPEND and status["phase"] == "Running":
        assert status["workspaceClaim"]


@given(STATES, STATUS, OBSERVED)
def test_a_pod_of_before_is_never_handed_over(
    state: str, status: dict[str, Any], observed: Observed
) -> None:
    made = plan_session(session(status=status, state=state), observed, TTL, NOW)
    if made.step is Step.HAND_OVER:
        assert observed.pod
        assert observed.pod.uid != status["podUID"]
        assert state == "Running"


@pytest.mark.parametrize(
    ("age", "step"), [(timedelta(minutes=2), Step.CLEAN_UP), (timedelta(0), Step.RECOVER)]
)
@pytest.mark.parametrize("how", [{"end": OOM}, {"failure": SETUP}])
def test_a_pod_of_before_the_last_loss_is_no_further_loss(
    how: dict[str, Any], age: timedelta, step: Step
) -> None:
    """Another operator has counted it, and made the next one."""
    lost = mine(created=NOW - age, end=how.get("end"))
    subject = recovering(failedAt=ago(minutes=1))
    assert plan(subject, lost, pod_failure=how.get("failure")).step is step


@pytest.mark.parametrize(
    ("minutes", "fields", "step", "reason", "looks"),
    [
        (1, {}, Step.WAIT, "Starting", 4),
        (5, {}, Step.WAIT, "PodStuck", 10),
        (15, {}, Step.CLEAN_UP, "", None),
        (15, {"trouble": ("ImagePullFailed", "not found")}, Step.WAIT, "ImagePullFailed", None),
        (15, {"trouble": ("Unschedulable", "no room")}, Step.WAIT, "Unschedulable", None),
        (15, {"ip": "10.1.0.1"}, Step.WAIT, "Starting", None),
    ],
)
def test_a_pod_that_does_not_start_is_told_and_replaced_unless_somebody_says_why(
    minutes: int, fields: dict[str, Any], step: Step, reason: str, looks: int | None
) -> None:
    """A node whose network or runtime is broken says so in events alone."""
    made = NOW - timedelta(minutes=minutes)
    found = plan(session(), mine(**{"created": made, "ip": ""} | fields))
    again = found.look_again and (found.look_again - NOW).total_seconds() / 60
    assert (found.step, found.reason, again) == (step, reason, looks)


IN_LINE = {
    "reason": "EnvironmentNotReady",
    "conditions": [DECLINED | {"type": "HasPlace", "reason": "Queued"}],
}
"""Of a session that was told to wait in line, and waits for something else by now."""


@pytest.mark.parametrize(
    ("status", "promise", "step"),
    [
        ({}, Promise.NONE, Step.SUSPEND),
        (IN_LINE, Promise.NONE, Step.SUSPEND),
        (IN_LINE, Promise.OPEN, Step.LET_GO),
        ({}, Promise.OPEN, Step.GET_POD),
        ({}, Promise.OURS, Step.GET_POD),
        (IN_LINE, Promise.GONE, Step.END),
    ],
)
def test_who_is_to_be_suspended_before_it_ran_is_so_unless_a_caller_may_be_told_otherwise(
    status: dict[str, Any], promise: Promise, step: Step
) -> None:
    assert plan(session(status=status, state="Suspended"), promise=promise).step is step
