"""Sessions in the middle of their lives, and what is planned for them."""

from datetime import datetime, timedelta
from typing import Any

from cloister_operator.api import conditions
from cloister_operator.api.conditions import timestamp
from cloister_operator.api.pod import PodView
from cloister_operator.api.session import SessionObject
from cloister_operator.plan.failure import Failure
from cloister_operator.plan.session import (
    Observed,
    SessionPlan,
    plan_session,
)
from support.operator_objects import NOW, environment, pod, session

TTL = timedelta(hours=1)
OOM = (conditions.OOM_KILLED, "the pod used more memory than spec.resources.memory")
SETUP = Failure(conditions.SETUP_FAILED, "setup ended with code 1")
OPEN = Failure(conditions.NETWORK_NOT_ENFORCED, "pod p1 reached 10.0.0.1:443")


def ago(**age: float) -> str:
    """A time of so long ago, as Kubernetes writes it."""
    return timestamp(NOW - timedelta(**age))


def running(**status: Any) -> SessionObject:
    """A session that runs."""
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
    """A session that runs and is to be suspended."""
    given_ = {"phase": "Running", "startedAt": ago(minutes=5), "lastActivityTime": ago(minutes=1)}
    return session(status=given_ | status, state="Suspended")


def suspended(state: str = "Suspended", **status: Any) -> SessionObject:
    """A session that is suspended, and is asked to be in this state."""
    given_ = {"phase": "Suspended", "startedAt": ago(hours=2), "podUID": "uid-of-old", **KEPT}
    return session(status=given_ | status, state=state)


def recovering(losses: int = 1, state: str = "Running", **status: Any) -> SessionObject:
    """A session that has just lost a pod, the last of so many."""
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
    """The pod of the session."""
    return pod(state="claimed", session_uid="uid-of-s1", session_name="s1", **fields)


def plan(
    subject: SessionObject,
    pod: PodView | None = None,
    now: datetime = NOW,
    **observed: Any,
) -> SessionPlan:
    """What is planned for a session, of which this is observed."""
    given_ = {
        "environment": environment(),
        "pod": pod,
        "pod_warm": False,
        "pod_failure": None,
        "others": 0,
        "environment_problem": None,
    }
    return plan_session(subject, Observed(**(given_ | observed)), TTL, now)
