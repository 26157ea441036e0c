"""The next step of a session: a table of cases, and what holds for every session."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.api import conditions
from cloister_operator.api.conditions import timestamp
from cloister_operator.api.pod import PodView
from cloister_operator.api.session import Phase, SessionObject
from cloister_operator.errors import PermanentError
from cloister_operator.plan.pool import Failure
from cloister_operator.plan.session import (
    Observed,
    SessionPlan,
    Step,
    expires_at,
    limits,
    plan_session,
)
from support.operator_objects import NOW, environment, pod, session

TTL = timedelta(hours=1)
OOM = (conditions.OOM_KILLED, "the pod used more memory than spec.resources.memory")
SETUP = Failure(conditions.SETUP_FAILED, "setup ended with code 1")
OPEN = Failure(conditions.NETWORK_NOT_ENFORCED, "pod p1 reached 10.0.0.1:443")


def ago(**age: float) -> str:
    return timestamp(NOW - timedelta(**age))


def running(**status: Any) -> SessionObject:
    given_ = {"phase": "Running", "startedAt": ago(minutes=5), "lastActivityTime": ago(minutes=1)}
    return session(status=given_ | status)


def mine(**fields: Any) -> PodView:
    return pod(state="claimed", session_uid="uid-of-s1", session_name="s1", **fields)


def plan(
    subject: SessionObject,
    pod: PodView | None = None,
    now: datetime = NOW,
    **observed: Any,
) -> SessionPlan:
    given_ = {
        "environment": environment(),
        "pod": pod,
        "pod_warm": False,
        "pod_failure": None,
        "others": 0,
        "environment_problem": None,
    }
    return plan_session(subject, Observed(**(given_ | observed)), TTL, now)


@pytest.mark.parametrize(
    ("made", "step", "phase", "reason"),
    [
        pytest.param(plan(session()), Step.GET_POD, Phase.PENDING, "", id="new"),
        pytest.param(
            plan(session(), environment=None),
            Step.WAIT,
            Phase.PENDING,
            "EnvironmentNotFound",
            id="no environment",
        ),
        pytest.param(
            plan(session(), environment_problem=OPEN),
            Step.WAIT,
            Phase.PENDING,
            "NetworkNotEnforced",
            id="environment has a problem",
        ),
        pytest.param(
            plan(session(), environment=environment(pool={"maxSessions": 2}), others=2),
            Step.WAIT,
            Phase.PENDING,
            "MaxSessionsReached",
            id="too many",
        ),
        pytest.param(
            plan(session(), environment=environment(pool={"maxSessions": 2}), others=1),
            Step.GET_POD,
            Phase.PENDING,
            "",
            id="the last one allowed",
        ),
        pytest.param(
            plan(session(), environment=environment(pool={"maxSessions": 0})),
            Step.WAIT,
            Phase.PENDING,
            "MaxSessionsReached",
            id="none allowed",
        ),
        pytest.param(
            plan(session(), mine()), Step.WAIT, Phase.PENDING, "Starting", id="its pod starts"
        ),
        pytest.param(
            plan(session(), mine(trouble=("Unschedulable", "no room"))),
            Step.WAIT,
            Phase.PENDING,
            "Unschedulable",
            id="no node for its pod",
        ),
        pytest.param(
            plan(session(), mine(), pod_warm=True), Step.HAND_OVER, Phase.PENDING, "", id="pod warm"
        ),
        pytest.param(
            plan(session(), mine(), pod_warm=True, environment=None),
            Step.HAND_OVER,
            Phase.PENDING,
            "",
            id="pod warm, environment deleted",
        ),
        pytest.param(
            plan(session(), mine(), pod_failure=SETUP),
            Step.END,
            Phase.FAILED,
            "SetupFailed",
            id="setup failed",
        ),
        pytest.param(
            plan(session(), mine(), pod_failure=OPEN),
            Step.WAIT,
            Phase.PENDING,
            "NetworkNotEnforced",
            id="its pod reached the cluster",
        ),
        pytest.param(
            plan(session(), mine(end=OOM)), Step.END, Phase.FAILED, "OOMKilled", id="died starting"
        ),
        pytest.param(
            plan(session(), mine(deleting=True)),
            Step.GET_POD,
            Phase.PENDING,
            "",
            id="its pod goes before it ran",
        ),
        pytest.param(
            plan(session(), mine(deleting=True, end=OOM)),
            Step.END,
            Phase.FAILED,
            "OOMKilled",
            id="its pod died and goes",
        ),
        pytest.param(
            plan(running(), mine()), Step.WAIT, Phase.RUNNING, "", id="runs and is not idle"
        ),
        pytest.param(
            plan(running(), None), Step.END, Phase.FAILED, "PodDeleted", id="runs without a pod"
        ),
        pytest.param(
            plan(running(), mine(deleting=True)),
            Step.END,
            Phase.FAILED,
            "PodDeleted",
            id="its pod is being deleted",
        ),
        pytest.param(
            plan(running(), mine(end=OOM)), Step.END, Phase.FAILED, "OOMKilled", id="out of memory"
        ),
        pytest.param(
            plan(running(lastActivityTime=ago(minutes=30)), mine()),
            Step.ASK_ACTIVITY,
            Phase.RUNNING,
            "",
            id="idle as far as known",
        ),
        pytest.param(
            plan(running(startedAt=ago(hours=24)), mine()),
            Step.END,
            Phase.TERMINATED,
            "MaxLifetime",
            id="old",
        ),
        pytest.param(
            plan(running(startedAt=ago(hours=25), lastActivityTime=ago(hours=2)), mine()),
            Step.END,
            Phase.TERMINATED,
            "MaxLifetime",
            id="old and idle: the lifetime needs no answer of the pod",
        ),
        pytest.param(
            plan(session(status={"phase": "Failed", "endedAt": ago(minutes=1)}), mine()),
            Step.CLEAN_UP,
            Phase.FAILED,
            "",
            id="ended with a pod",
        ),
        pytest.param(
            plan(session(status={"phase": "Failed", "endedAt": ago(minutes=1)})),
            Step.WAIT,
            Phase.FAILED,
            "",
            id="ended",
        ),
        pytest.param(
            plan(session(status={"phase": "Terminated", "endedAt": ago(hours=1)})),
            Step.FORGET,
            Phase.TERMINATED,
            "",
            id="ended long ago",
        ),
    ],
)
def test_steps(made: SessionPlan, step: Step, phase: Phase, reason: str) -> None:
    assert (made.step, made.phase, made.reason) == (step, phase, reason)


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


PODS = st.one_of(
    st.none(),
    st.builds(
        lambda deleting, end, state: pod(
            deleting=deleting, end=end, state=state, session_uid="uid-of-s1"
        ),
        st.booleans(),
        st.sampled_from([None, OOM]),
        st.just("claimed"),
    ),
)
STATUS = st.fixed_dictionaries(
    {
        "phase": st.sampled_from(["Pending", "Running", "Failed", "Terminated"]),
        "startedAt": st.one_of(st.none(), st.integers(0, 100_000).map(lambda s: ago(seconds=s))),
        "endedAt": st.one_of(st.none(), st.integers(0, 10_000).map(lambda s: ago(seconds=s))),
    }
)
OBSERVED = st.builds(
    Observed,
    environment=st.sampled_from([None, environment(), environment(pool={"maxSessions": 1})]),
    pod=PODS,
    pod_warm=st.booleans(),
    pod_failure=st.sampled_from([None, SETUP, OPEN]),
    others=st.integers(0, 3),
    environment_problem=st.sampled_from([None, OPEN]),
)


@given(STATUS, OBSERVED)
def test_an_ended_session_never_runs_again(status: dict[str, Any], observed: Observed) -> None:
    subject = session(status=status)
    made = plan_session(subject, observed, TTL, NOW)
    if subject.status.phase.ended:
        assert made.step in (Step.WAIT, Step.CLEAN_UP, Step.FORGET)
        assert made.phase is subject.status.phase


@given(STATUS, OBSERVED)
def test_a_session_with_a_pod_gets_no_other(status: dict[str, Any], observed: Observed) -> None:
    made = plan_session(session(status=status), observed, TTL, NOW)
    if made.step is Step.GET_POD:
        assert observed.pod is None or observed.pod.deleting


@given(STATUS, OBSERVED)
def test_only_a_usable_pod_is_handed_over(status: dict[str, Any], observed: Observed) -> None:
    made = plan_session(session(status=status), observed, TTL, NOW)
    if made.step is Step.HAND_OVER:
        assert observed.pod is not None
        assert observed.pod.alive
        assert observed.pod_warm
        assert observed.pod_failure is None


@given(STATUS, OBSERVED)
def test_who_waits_says_why_or_until_when(status: dict[str, Any], observed: Observed) -> None:
    made = plan_session(session(status=status), observed, TTL, NOW)
    if made.step is Step.WAIT:
        assert made.look_again or (made.reason and made.message)
    if made.step is Step.END:
        assert made.phase.ended
        assert made.reason
        assert made.message
