"""What happens next to a session."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from ..api import conditions
from ..api.common import duration
from ..api.conditions import parse_time
from ..api.environment import EnvironmentObject
from ..api.pod import PodView
from ..api.session import Phase, SessionObject
from .pool import Failure


class Step(Enum):
    """The next step; each is repeatable."""

    WAIT = "nothing to do until an event or the deadline"
    GET_POD = "claim a warm pod, or make one"
    HAND_OVER = "tell the pod whose it is, then write the status"
    ASK_ACTIVITY = "the idle deadline is due: ask the pod"
    END = "write the end, delete the pod"
    CLEAN_UP = "ended: its pod must go"
    FORGET = "ended long ago: delete the Session"


@dataclass(frozen=True)
class SessionPlan:
    """A step, why (for END and WAIT), and when to look again (None: at the next event)."""

    step: Step
    phase: Phase = Phase.PENDING
    reason: str = ""
    message: str = ""
    look_again: datetime | None = None


@dataclass(frozen=True)
class Observed:
    """What is known about a session's surroundings."""

    environment: EnvironmentObject | None
    pod: PodView | None
    """The pod that carries the session's label."""
    pod_warm: bool
    """The pod's exec server is up, set up and proven isolated."""
    pod_failure: Failure | None
    others: int
    """Other sessions of the Environment that have a pod, or asked for one before this one."""
    environment_problem: Failure | None
    """Why the Environment cannot give sessions: its references, its policy, its network."""


def limits(
    session: SessionObject, environment: EnvironmentObject | None
) -> tuple[timedelta, timedelta]:
    """Idle timeout and lifetime: the shorter of the session's and the Environment's."""
    bounds = environment.spec.lifecycle if environment else None
    own = session.spec.lifecycle

    def shortest(name: str, texts: list[str | None]) -> timedelta:
        return min(duration(text, f"spec.lifecycle.{name}") for text in texts if text)

    # Without its Environment a session keeps the limits of its own, or the schema's defaults.
    idle = shortest("idleTimeout", [own.idle_timeout, bounds.idle_timeout if bounds else "30m"])
    life = shortest("maxLifetime", [own.max_lifetime, bounds.max_lifetime if bounds else "24h"])
    return idle, life


def expires_at(session: SessionObject, environment: EnvironmentObject | None) -> datetime | None:
    """When the lifetime of a session that runs is over."""
    if not session.status.started_at:
        return None
    return parse_time(session.status.started_at) + limits(session, environment)[1]


def plan_session(
    session: SessionObject, observed: Observed, ended_ttl: timedelta, now: datetime
) -> SessionPlan:
    """The next step of a session that is not being deleted."""
    status = session.status
    if status.phase.ended:
        return _after_end(session, observed, ended_ttl, now)
    if status.phase is Phase.RUNNING:
        return _running(session, observed, now)
    pod = observed.pod
    if pod and pod.end:
        return SessionPlan(Step.END, Phase.FAILED, *pod.end)
    if pod is None or pod.deleting:
        # Nobody has worked in a pod that goes before the session ran: another serves as well.
        return _without_pod(session, observed)
    failure = observed.pod_failure
    if failure:
        if failure.reason == conditions.NETWORK_NOT_ENFORCED:
            return SessionPlan(Step.WAIT, reason=failure.reason, message=failure.message)
        return SessionPlan(Step.END, Phase.FAILED, failure.reason, failure.message)
    if not observed.pod_warm:
        reason, message = pod.trouble or (conditions.STARTING, f"pod {pod.name} is starting")
        return SessionPlan(Step.WAIT, reason=reason, message=message)
    return SessionPlan(Step.HAND_OVER)


def _after_end(
    session: SessionObject, observed: Observed, ended_ttl: timedelta, now: datetime
) -> SessionPlan:
    phase = session.status.phase
    if observed.pod and not observed.pod.deleting:
        return SessionPlan(Step.CLEAN_UP, phase)
    ended = parse_time(session.status.ended_at) if session.status.ended_at else now
    if now >= ended + ended_ttl:
        return SessionPlan(Step.FORGET, phase)
    return SessionPlan(Step.WAIT, phase, look_again=ended + ended_ttl)


def _without_pod(session: SessionObject, observed: Observed) -> SessionPlan:
    environment = observed.environment
    if environment is None:
        name = session.spec.environment_name
        return SessionPlan(
            Step.WAIT,
            reason=conditions.ENVIRONMENT_NOT_FOUND,
            message=f"there is no Environment {name} in this namespace; apply it, "
            "or delete this Session",
        )
    problem = observed.environment_problem
    if problem:
        return SessionPlan(Step.WAIT, reason=problem.reason, message=problem.message)
    most = environment.spec.pool.max_sessions
    if most is not None and observed.others >= most:
        return SessionPlan(
            Step.WAIT,
            reason=conditions.MAX_SESSIONS_REACHED,
            message=f"Environment {environment.metadata.name} allows {most} sessions; this one "
            "gets a pod when another ends",
        )
    return SessionPlan(Step.GET_POD)


def _running(session: SessionObject, observed: Observed, now: datetime) -> SessionPlan:
    pod = observed.pod
    if pod is None or pod.deleting:
        return SessionPlan(
            Step.END, Phase.FAILED, conditions.POD_DELETED, "the pod is gone, with all its work"
        )
    if pod.end:
        return SessionPlan(Step.END, Phase.FAILED, *pod.end)
    status = session.status
    started = parse_time(status.started_at) if status.started_at else now
    idle, life = limits(session, observed.environment)
    if now >= started + life:
        message = f"the session lived for {int(life.total_seconds())} s"
        return SessionPlan(Step.END, Phase.TERMINATED, conditions.MAX_LIFETIME, message)
    active = parse_time(status.last_activity_time) if status.last_activity_time else started
    if now >= active + idle:
        return SessionPlan(Step.ASK_ACTIVITY, Phase.RUNNING)
    return SessionPlan(Step.WAIT, Phase.RUNNING, look_again=min(started + life, active + idle))
