"""What happens next to a session."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from .. import names
from ..api import conditions
from ..api.common import duration
from ..api.conditions import parse_time
from ..api.environment import EnvironmentObject
from ..api.pod import PodView
from ..api.session import Phase, SessionObject
from .failure import Failure
from .trials import STUCK_AFTER

FIRST_RECOVERY = timedelta(seconds=2)
"""Before the second pod after a loss; doubled from one loss to the next."""
LONGEST_RECOVERY = timedelta(minutes=5)
MAX_RECOVERIES = 8
"""Pods lost one after the other; then the session fails."""
STABLE = timedelta(minutes=10)
"""A pod that lasted for so long makes the losses before it count no more."""
QUEUE_LOOK = timedelta(seconds=30)
"""How often a session in line looks how far it has come; who may go is told at once."""
VOLUME_LOOK = timedelta(seconds=10)
"""While a pod waits for its volume, how often its events are read."""
REPLACED_AFTER = timedelta(minutes=15)
"""A pod that has yet to start by then, and nobody says why, goes: its node may be to blame."""


class Step(Enum):
    """The next step; each is repeatable."""

    WAIT = "nothing to do until an event or the deadline"
    GET_POD = "claim a warm pod, or make one"
    HAND_OVER = "tell the pod whose it is, then write the status"
    ASK_ACTIVITY = "the idle deadline is due: ask the pod"
    SUSPEND = "let calls finish, write that it is suspended, delete the pod"
    DECLINE = "say that it cannot be suspended"
    LET_GO = "delete the pod that it was made for, unless somebody has claimed it since"
    RESUME = "write that it is to get a pod again"
    RECOVER = "its pod is lost and its workspace is not: write that it gets another"
    END = "write the end, delete the pod"
    CLEAN_UP = "it has no use for its pod any more: it must go"
    FORGET = "ended long ago: delete the Session"


class Promise(Enum):
    """What a caller may know of the pod that a session was made for."""

    NONE = "nothing: it was made for none, or cannot have it"
    OPEN = "nothing yet: the pod is there, and to be claimed before any other, within the limits"
    OURS = "nothing yet, and this process made it for the pod, when there was a place for it"
    KEPT = "another process may have said that the session runs in its pod"
    GONE = "the same, of a pod that is gone"


@dataclass(frozen=True)
class SessionPlan:
    """A step, why (for END, RECOVER, SUSPEND and WAIT), and when to look again (None: at the next
    event).
    """

    step: Step
    phase: Phase = Phase.PENDING
    reason: str = ""
    message: str = ""
    look_again: datetime | None = None
    queue_position: int | None = None
    """Its number in line, where it waits for another session's end."""


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
    volume_problem: Failure | None = None
    """Why the pod does not get its workspace, by the events about it."""
    in_line: int = 0
    """Of the others, those that wait for a place as well."""
    namespace_others: int = 0
    """Other sessions of the namespace that have a pod, or have waited for one for longer."""
    namespace_most: int = 0
    """Of them all, how many the platform allows; 0 is any number."""
    promise: Promise = Promise.NONE
    recipe_gone: bool = False
    """The pod has yet to start, and the Secret with its recipe went with its Environment."""


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
    """When the lifetime of a session that has started is over, suspended or not."""
    if not session.status.started_at:
        return None
    return parse_time(session.status.started_at) + limits(session, environment)[1]


def suspends_when_idle(session: SessionObject, environment: EnvironmentObject | None) -> bool:
    """Whether an idle session is suspended rather than ended.

    One whose pod was made before the Environment's workspace became persistent has nothing to
    keep, and one without its Environment nothing to come back to.
    """
    if environment is None or not session.status.workspace_claim:
        return False
    return environment.spec.lifecycle.on_idle == "Suspend"


def plan_session(
    session: SessionObject, observed: Observed, ended_ttl: timedelta, now: datetime
) -> SessionPlan:
    """The next step of a session that is not being deleted."""
    phase = session.status.phase
    if phase.ended:
        return _after_end(session, observed, ended_ttl, now)
    if phase is Phase.SUSPENDED:
        return _suspended(session, observed, now)
    if phase is Phase.RUNNING:
        return _running(session, observed, now)
    return _pending(session, observed, now)


def _pending(session: SessionObject, observed: Observed, now: datetime) -> SessionPlan:
    pod, status = observed.pod, session.status
    over = _lifetime_over(session, observed, now)
    if over:
        return over
    if pod and (pod.uid == status.pod_uid or _lost_before(session, observed, pod)):
        # The pod that it lost, or that it was suspended from: never used again.
        return _without_old_pod(session, pod)
    if observed.promise is Promise.GONE or (
        observed.promise is Promise.KEPT and pod and pod.deleting and not pod.end
    ):
        # Somebody may have worked in it.
        reason, message = (pod and pod.disruption) or _GONE
        return _lost(session, reason, message, now=now)
    if session.spec.state == "Suspended" and observed.promise is Promise.NONE:
        return SessionPlan(Step.SUSPEND, Phase.SUSPENDED, *_ASKED)
    if session.spec.state == "Suspended" and observed.promise is Promise.OPEN and session.in_line:
        # Who made it for that pod may yet claim it, and say that it runs.
        return SessionPlan(Step.LET_GO)
    if pod and pod.end:
        return _lost(session, *pod.end, now=now)
    if pod is None or pod.deleting:
        if pod and status.workspace_claim:
            return _without_old_pod(session, pod)
        due = _recovery_due(session)
        if due and now < due:
            return SessionPlan(Step.WAIT, look_again=due)
        # Nobody has worked in a pod that goes before the session ran: another serves as well.
        return _without_pod(session, observed, now)
    if observed.recipe_gone:
        # It would wait for that Secret for ever.
        return SessionPlan(Step.CLEAN_UP)
    failure = observed.pod_failure
    if failure:
        if failure.reason == conditions.NETWORK_NOT_ENFORCED:
            return SessionPlan(Step.WAIT, reason=failure.reason, message=failure.message)
        return _lost(session, failure.reason, failure.message, now=now)
    if observed.pod_warm:
        return SessionPlan(Step.HAND_OVER)
    return _starting(pod, observed, now)


def _starting(pod: PodView, observed: Observed, now: datetime) -> SessionPlan:
    looks = [now + VOLUME_LOOK] if pod.claim and not pod.ip else []
    reason, message = pod.trouble or (conditions.STARTING, f"pod {pod.name} is starting")
    if observed.volume_problem:
        reason, message = observed.volume_problem.reason, observed.volume_problem.message
    elif not pod.ip and not pod.trouble:
        stuck, gone = pod.created + STUCK_AFTER, pod.created + REPLACED_AFTER
        if now >= gone:
            return SessionPlan(Step.CLEAN_UP)
        if now >= stuck:
            reason = conditions.POD_STUCK
            message = (
                f"pod {pod.name} has not started for {_minutes(STUCK_AFTER)} minutes; `kubectl "
                "describe pod` says why. Another one takes its place after "
                f"{_minutes(REPLACED_AFTER)} minutes"
            )
        looks.append(stuck if now < stuck else gone)
    again = min(looks, default=None)
    return SessionPlan(Step.WAIT, reason=reason, message=message, look_again=again)


def _minutes(span: timedelta) -> int:
    return span // timedelta(minutes=1)


def _lost_before(session: SessionObject, observed: Observed, pod: PodView) -> bool:
    """Whether a pod that failed was there when the session lost one: two operators, one of which is
    behind, would otherwise count it and the next one again and again, as fast as they can write.
    """
    last = session.status.failed_at
    failed = pod.end or observed.pod_failure
    return bool(failed and last) and pod.created < parse_time(last or "")


def _without_old_pod(session: SessionObject, pod: PodView) -> SessionPlan:
    """A volume serves one pod at a time: the next one waits until the last has gone."""
    if not pod.deleting:
        return SessionPlan(Step.CLEAN_UP, session.status.phase)
    message = (
        f"pod {pod.name} still holds the workspace; when its node is lost, delete the Node or "
        "taint it node.kubernetes.io/out-of-service"
    )
    return SessionPlan(Step.WAIT, reason=conditions.WORKSPACE_IN_USE, message=message)


def _recovery_due(session: SessionObject) -> datetime | None:
    status = session.status
    # The first loss costs no time: most often the node is to blame, and the next one is well.
    if not status.failed_at or status.recoveries <= 1:
        return None
    wait: timedelta = FIRST_RECOVERY * 2 ** (status.recoveries - 2)
    return parse_time(status.failed_at) + min(LONGEST_RECOVERY, wait)


def losses_after(session: SessionObject, now: datetime) -> int:
    """Pods lost one after the other, with the one that is lost now."""
    status = session.status
    since = parse_time(status.running_since) if status.running_since else now
    return 1 if now - since >= STABLE else status.recoveries + 1


def _lost(session: SessionObject, reason: str, message: str, *, now: datetime) -> SessionPlan:
    """Its pod is lost: another one goes on where the workspace is kept."""
    status = session.status
    if not status.workspace_claim:
        return SessionPlan(Step.END, Phase.FAILED, reason, message)
    if losses_after(session, now) > MAX_RECOVERIES:
        message = f"{message}; {status.recoveries} pods before it were lost as well"
        return SessionPlan(Step.END, Phase.FAILED, reason, message)
    return SessionPlan(Step.RECOVER, Phase.PENDING, reason, message)


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


_GONE = (conditions.POD_DELETED, "the pod is gone, with all its work")
_ASKED = (
    conditions.SUSPENDED,
    "it has no pod, as asked; its workspace is kept. Resume it to go on",
)


def _suspended(session: SessionObject, observed: Observed, now: datetime) -> SessionPlan:
    over = _lifetime_over(session, observed, now)
    if over:
        return over
    if observed.pod and not observed.pod.deleting:
        return SessionPlan(Step.CLEAN_UP, Phase.SUSPENDED)
    if session.spec.state == "Running":
        return SessionPlan(Step.RESUME)
    ends = expires_at(session, observed.environment)
    return SessionPlan(Step.WAIT, Phase.SUSPENDED, *_ASKED, look_again=ends)


def _without_pod(session: SessionObject, observed: Observed, now: datetime) -> SessionPlan:
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
    if observed.promise is Promise.OURS:
        # Limits that came since are looked at once it has the pod, which is nobody else's.
        return SessionPlan(Step.GET_POD)
    # A limit holds for who has a pod in view, too: sessions of a namespace or an Environment with a
    # limit are made for none, and the annotation is anybody's who may make Sessions.
    most = environment.spec.pool.max_sessions
    if most is not None and observed.others >= most:
        # Those for which there is a place are as good as gone; where more run than may, which a
        # change of the Environment can bring about, it is still the next one's turn.
        position = min(observed.others - most, observed.in_line) + 1
        return SessionPlan(
            Step.WAIT,
            reason=conditions.QUEUED,
            message=f"Environment {environment.metadata.name} allows {most} sessions at a time; "
            f"this one is number {position} in line and gets a pod when others end",
            look_again=now + QUEUE_LOOK,
            queue_position=position,
        )
    if 0 < observed.namespace_most <= observed.namespace_others:
        return namespace_full(session.metadata.namespace, observed.namespace_most, now + QUEUE_LOOK)
    return SessionPlan(Step.GET_POD)


def namespace_full(namespace: str, most: int, look_again: datetime | None = None) -> SessionPlan:
    """The platform's limit keeps a session waiting, however it was made: the Sessions API refuses
    to make one more, and what came by kubectl is there already.
    """
    return SessionPlan(
        Step.WAIT,
        reason=conditions.NAMESPACE_FULL,
        message=f"namespace {namespace} has the {most} sessions, running or waiting for longer, "
        f"that the platform allows ({names.NAMESPACE_LIMIT} in the chart's values); this one "
        "gets a pod when others end or are suspended: end those that nobody needs, or ask for a "
        "higher limit",
        look_again=look_again,
    )


def _lifetime_over(session: SessionObject, observed: Observed, now: datetime) -> SessionPlan | None:
    ends = expires_at(session, observed.environment)
    if ends is None or now < ends:
        return None
    life = limits(session, observed.environment)[1]
    message = f"the session lived for {int(life.total_seconds())} s"
    return SessionPlan(Step.END, Phase.TERMINATED, conditions.MAX_LIFETIME, message)


def declined(session: SessionObject) -> bool:
    """Whether it was said already that it cannot be suspended."""
    return any(
        each.type == conditions.SUSPENDED
        and each.status == "False"
        and each.observed_generation == session.metadata.generation
        for each in session.status.conditions
    )


def _running(session: SessionObject, observed: Observed, now: datetime) -> SessionPlan:
    pod, status = observed.pod, session.status
    if pod and pod.end:
        return _lost(session, *pod.end, now=now)
    if pod is None or pod.deleting:
        gone = _GONE
        if status.workspace_claim:
            gone = (conditions.POD_DELETED, "the pod is gone; the workspace is kept")
        return _lost(session, *((pod and pod.disruption) or gone), now=now)
    over = _lifetime_over(session, observed, now)
    if over:
        return over
    if session.spec.state == "Suspended":
        if status.workspace_claim:
            return SessionPlan(Step.SUSPEND, Phase.SUSPENDED, *_ASKED)
        if not declined(session):
            message = (
                "it goes on running: without workspace.persistent in its Environment, its work "
                "would be gone; delete the Session to end it"
            )
            reason = conditions.WORKSPACE_NOT_PERSISTENT
            return SessionPlan(Step.DECLINE, Phase.RUNNING, reason, message)
    started = parse_time(status.started_at) if status.started_at else now
    idle, life = limits(session, observed.environment)
    since = parse_time(status.running_since) if status.running_since else started
    active = parse_time(status.last_activity_time) if status.last_activity_time else since
    if now >= active + idle:
        return SessionPlan(Step.ASK_ACTIVITY, Phase.RUNNING)
    return SessionPlan(Step.WAIT, Phase.RUNNING, look_again=min(started + life, active + idle))
