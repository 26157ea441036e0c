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
from cloister_operator.plan.failure import Failure
from cloister_operator.plan.session import (
    Observed,
    SessionPlan,
    Step,
    expires_at,
    limits,
    plan_session,
    suspends_when_idle,
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


KEPT = {"workspaceClaim": "py-1"}
"""Of sessions whose workspace outlives their pods."""
DECLINED = {
    "type": "Suspended",
    "status": "False",
    "reason": "WorkspaceNotPersistent",
    "message": "no",
    "lastTransitionTime": ago(minutes=1),
    "observedGeneration": 1,
}


def to_suspend(**status: Any) -> SessionObject:
    given_ = {"phase": "Running", "startedAt": ago(minutes=5), "lastActivityTime": ago(minutes=1)}
    return session(status=given_ | status, state="Suspended")


def suspended(state: str = "Suspended", **status: Any) -> SessionObject:
    given_ = {"phase": "Suspended", "startedAt": ago(hours=2), "podUID": "uid-of-old", **KEPT}
    return session(status=given_ | status, state=state)


def recovering(losses: int = 1, state: str = "Running", **status: Any) -> SessionObject:
    given_ = {
        "phase": "Pending",
        "startedAt": ago(hours=2),
        "podUID": "uid-of-old",
        "failedAt": ago(seconds=0),
        "recoveries": losses,
        **KEPT,
    }
    return session(status=given_ | status, state=state)


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
            "Queued",
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
            "Queued",
            id="none allowed",
        ),
        pytest.param(
            plan(session(), namespace_others=3, namespace_most=3),
            Step.WAIT,
            Phase.PENDING,
            "NamespaceFull",
            id="its namespace is full",
        ),
        pytest.param(
            plan(session(), namespace_others=2, namespace_most=3),
            Step.GET_POD,
            Phase.PENDING,
            "",
            id="the last one that its namespace may have",
        ),
        pytest.param(
            plan(session(), namespace_others=9, namespace_most=0),
            Step.GET_POD,
            Phase.PENDING,
            "",
            id="a namespace without a limit",
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
        pytest.param(
            plan(session(state="Suspended")),
            Step.SUSPEND,
            Phase.SUSPENDED,
            "Suspended",
            id="new, suspended",
        ),
        pytest.param(
            plan(session(state="Suspended"), mine(), pod_warm=True),
            Step.SUSPEND,
            Phase.SUSPENDED,
            "Suspended",
            id="suspended before it ran",
        ),
        pytest.param(
            plan(to_suspend(**KEPT), mine()),
            Step.SUSPEND,
            Phase.SUSPENDED,
            "Suspended",
            id="to be suspended",
        ),
        pytest.param(
            plan(to_suspend(), mine()),
            Step.DECLINE,
            Phase.RUNNING,
            "WorkspaceNotPersistent",
            id="to be suspended, its workspace would be gone",
        ),
        pytest.param(
            plan(to_suspend(conditions=[DECLINED]), mine()),
            Step.WAIT,
            Phase.RUNNING,
            "",
            id="declined once",
        ),
        pytest.param(
            plan(to_suspend(conditions=[DECLINED], lastActivityTime=ago(hours=1)), mine()),
            Step.ASK_ACTIVITY,
            Phase.RUNNING,
            "",
            id="declined, and idle",
        ),
        pytest.param(plan(suspended()), Step.WAIT, Phase.SUSPENDED, "Suspended", id="suspended"),
        pytest.param(
            plan(suspended(), mine(uid="uid-of-old")),
            Step.CLEAN_UP,
            Phase.SUSPENDED,
            "",
            id="suspended with a pod",
        ),
        pytest.param(
            plan(suspended("Running")), Step.RESUME, Phase.PENDING, "", id="to be resumed"
        ),
        pytest.param(
            plan(suspended("Running", startedAt=ago(hours=24))),
            Step.END,
            Phase.TERMINATED,
            "MaxLifetime",
            id="suspended for too long",
        ),
        pytest.param(plan(recovering()), Step.GET_POD, Phase.PENDING, "", id="lost its pod"),
        pytest.param(
            plan(recovering(), mine(uid="uid-of-old", end=OOM)),
            Step.CLEAN_UP,
            Phase.PENDING,
            "",
            id="the lost pod is still there",
        ),
        pytest.param(
            plan(recovering(), mine(uid="uid-of-old", deleting=True)),
            Step.WAIT,
            Phase.PENDING,
            "WorkspaceInUse",
            id="the lost pod is on its way",
        ),
        pytest.param(
            plan(recovering(losses=2)), Step.WAIT, Phase.PENDING, "", id="lost pods in a row"
        ),
        pytest.param(
            plan(recovering(losses=2, failedAt=ago(seconds=2))),
            Step.GET_POD,
            Phase.PENDING,
            "",
            id="lost pods in a row, a while ago",
        ),
        pytest.param(
            plan(recovering(state="Suspended")),
            Step.SUSPEND,
            Phase.SUSPENDED,
            "Suspended",
            id="suspended while it recovers",
        ),
        pytest.param(
            plan(recovering(startedAt=ago(hours=25))),
            Step.END,
            Phase.TERMINATED,
            "MaxLifetime",
            id="too old to recover",
        ),
        pytest.param(
            plan(recovering(), mine(end=OOM)),
            Step.RECOVER,
            Phase.PENDING,
            "OOMKilled",
            id="the next pod died as well",
        ),
        pytest.param(
            plan(recovering(), mine(), pod_failure=SETUP),
            Step.RECOVER,
            Phase.PENDING,
            "SetupFailed",
            id="the next pod cannot be set up",
        ),
        pytest.param(
            plan(recovering(losses=8), mine(end=OOM)),
            Step.END,
            Phase.FAILED,
            "OOMKilled",
            id="the last of many",
        ),
        pytest.param(
            plan(running(**KEPT), mine(end=OOM)),
            Step.RECOVER,
            Phase.PENDING,
            "OOMKilled",
            id="out of memory, workspace kept",
        ),
        pytest.param(
            plan(running(**KEPT)), Step.RECOVER, Phase.PENDING, "PodDeleted", id="pod gone, kept"
        ),
        pytest.param(
            plan(running(), mine(deleting=True, disruption=("NodeLost", "the node is gone"))),
            Step.END,
            Phase.FAILED,
            "NodeLost",
            id="node lost",
        ),
        pytest.param(
            plan(running(**KEPT), mine(deleting=True, disruption=("NodeLost", "gone"))),
            Step.RECOVER,
            Phase.PENDING,
            "NodeLost",
            id="node lost, workspace kept",
        ),
        pytest.param(
            plan(
                session(),
                mine(claim="c", ip=""),
                volume_problem=Failure("VolumeNotBound", "no class"),
            ),
            Step.WAIT,
            Phase.PENDING,
            "VolumeNotBound",
            id="no volume",
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
