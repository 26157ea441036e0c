"""The next step of a session: a table of cases."""

import pytest

from cloister_operator.api.session import Phase
from cloister_operator.plan.failure import Failure
from cloister_operator.plan.session import (
    SessionPlan,
    Step,
)
from support.operator_objects import NOW, environment, session
from support.session_plans import (
    DECLINED,
    KEPT,
    OOM,
    OPEN,
    SETUP,
    ago,
    mine,
    plan,
    recovering,
    running,
    suspended,
    to_suspend,
)


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
            plan(recovering(), mine(end=OOM, created=NOW)),
            Step.RECOVER,
            Phase.PENDING,
            "OOMKilled",
            id="the next pod died as well",
        ),
        pytest.param(
            plan(recovering(), mine(created=NOW), pod_failure=SETUP),
            Step.RECOVER,
            Phase.PENDING,
            "SetupFailed",
            id="the next pod cannot be set up",
        ),
        pytest.param(
            plan(recovering(losses=8), mine(end=OOM, created=NOW)),
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
