"""What must have come about once nothing goes wrong any more."""

from collections.abc import Iterator
from typing import Any

from cloister_operator import names
from cloister_operator.cluster.resources import ENVIRONMENTS, PODS, SECRETS, SESSIONS, VOLUME_CLAIMS
from cloister_operator.plan.line import worth_telling
from simulation.world import SimOperator, SimWorld
from support.fake_api import Write
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]
ENDED = ("Failed", "Terminated")


def unmet(world: SimWorld) -> Iterator[str]:
    """What was asked for and is not there, and what is there and should not be."""
    environments = {
        each["metadata"]["name"]: each for each in world.cluster.peek_all(ENVIRONMENTS, NAMESPACE)
    }
    sessions = world.cluster.peek_all(SESSIONS, NAMESPACE)
    for name, environment in environments.items():
        size, said = (
            environment["spec"]["pool"]["size"],
            environment.get("status", {}).get("pool", {}),
        )
        # A pool that has yet to grow, for claims of a moment ago, shrinks only minutes later.
        if not world.pool_is(size, name) or said.get("wanted") != size:
            yield f"the pool of {name} is not as asked"
        if (
            environment.get("status", {}).get("observedGeneration")
            != (environment["metadata"]["generation"])
        ):
            yield f"the last change of {name} was not looked at"
        yield from _line(name, environment, sessions)
        claimed = len(world.pods(environment=name, state=names.STATE_CLAIMED))
        if said.get("claimed") != claimed:
            yield f"the status of {name} counts other than {claimed} claimed pods"
    for session in sessions:
        yield from _session(world, session, environments)
    for pod in world.cluster.peek_all(PODS, NAMESPACE):
        name = pod["metadata"]["name"]
        if "deletionTimestamp" in pod["metadata"]:
            yield f"pod {name} is still there"
        labels = pod["metadata"]["labels"]
        free = labels[names.STATE_LABEL] != names.STATE_CLAIMED
        if free and labels[names.ENVIRONMENT_LABEL] not in environments:
            yield f"pod {name} is of no Environment"
    yield from world.problems()
    for name in sorted(world.leaks()):
        sent = world.doubled or Write("create", SECRETS.plural, name) in world.cluster.late
        if sent and _owner(world, name) in environments:
            # Two operators, one of which was dead, or had yet to hear that the Environment had
            # changed: what it had sent by then came when the other had tidied up, and goes with the
            # Environment.
            continue
        yield f"Secret {name} is needed by nobody"


def strangers(world: SimWorld, operator: SimOperator) -> Iterator[str]:
    """What an operator knows of pods and sessions that are gone: some resyncs later nothing."""
    context, starts = operator.context, operator.controller._sessions._starts
    known = {
        PODS: (
            *(context.failures, context.refusals, context.usable, context.reserved),
            *(context.identified, context.made, context.placed, context.met),
        ),
        SESSIONS: (starts._since, starts._warm, starts._cold, starts._refused, starts._silent),
    }
    for resource, uids in known.items():
        present = {each["metadata"]["uid"] for each in world.cluster.peek_all(resource, NAMESPACE)}
        gone = set[str]().union(*uids) - present
        if gone:
            yield f"an operator remembers {resource.plural} that are gone: {sorted(gone)}"


def _owner(world: SimWorld, secret: str) -> str:
    (owner,) = world.cluster.get(SECRETS, NAMESPACE, secret)["metadata"]["ownerReferences"]
    return str(owner["name"])


def _line(name: str, environment: JSON, sessions: list[JSON]) -> Iterator[str]:
    """Who waits for a place says which number it has, the oldest first."""
    waiting = [
        each
        for each in sessions
        if each["spec"]["environmentName"] == name
        and (each.get("status") or {}).get("reason") == "Queued"
    ]
    waiting.sort(key=lambda x: (x["metadata"]["creationTimestamp"], x["metadata"]["name"]))
    if waiting and environment["spec"]["pool"].get("maxSessions") is None:
        yield f"sessions of {name} are in line, and nothing keeps them"
    for position, each in enumerate(waiting, 1):
        if worth_telling(each["status"].get("queuePosition"), position):
            yield f"session {each['metadata']['name']} is not shown to be number {position}"
    for each in sessions:
        if (each.get("status") or {}).get("reason") != "Queued" and "queuePosition" in (
            each.get("status") or {}
        ):
            yield f"session {each['metadata']['name']} is in no line and shows a number"


def _session(world: SimWorld, session: JSON, environments: dict[str, JSON]) -> Iterator[str]:
    name, uid = session["metadata"]["name"], session["metadata"]["uid"]
    status = session.get("status") or {}
    phase = status.get("phase", "Pending")
    asked, kept = session["spec"].get("state", "Running"), status.get("workspaceClaim")
    if kept and phase not in ENDED and world.cluster.peek(VOLUME_CLAIMS, NAMESPACE, kept) is None:
        yield f"session {name} has lost its workspace"
    if phase == "Running":
        if kept and asked == "Suspended":
            yield f"session {name} is to be suspended and runs"
        ended = {x["status"]["phase"] for x in world.pods(session=uid)} - {"Running"}
        if ended or not world.served(name):
            yield f"session {name} runs, but not in one pod of its own"
        issued = (session["metadata"].get("annotations") or {}).get(names.ISSUED_BY)
        if not issued and names.credentials_secret(name) not in world.secrets():
            yield f"session {name} has no credentials"
        return
    if world.pods(session=uid):
        yield f"session {name} is {phase} and has a pod"
    if phase in ENDED or phase == asked == "Suspended":
        return
    environment = environments.get(session["spec"]["environmentName"])
    if environment is None:
        if status.get("reason") != "EnvironmentNotFound":
            yield f"session {name} does not say that its Environment is missing"
        return
    if 0 < world.invariants.most <= _before(session, world):
        if status.get("reason") not in ("NamespaceFull", "Queued"):
            yield f"session {name} does not say that its namespace is full"
        return
    most = environment["spec"]["pool"].get("maxSessions")
    others = sum(
        1
        for each in world.cluster.peek_all(SESSIONS, NAMESPACE)
        if each["spec"]["environmentName"] == environment["metadata"]["name"]
        and (each.get("status") or {}).get("phase") == "Running"
    )
    if most is None or others < most:
        yield f"session {name} is {phase} ({status.get('reason')})"


def _before(session: JSON, world: SimWorld) -> int:
    """Sessions of the namespace that run, or have waited for longer than this one."""
    found = 0
    for each in world.cluster.peek_all(SESSIONS, NAMESPACE):
        phase = (each.get("status") or {}).get("phase", "Pending")
        waits = phase == "Pending" and each["spec"].get("state", "Running") == "Running"
        found += phase == "Running" or (waits and _age(each) < _age(session))
    return found


def _age(session: JSON) -> tuple[str, str]:
    return session["metadata"]["creationTimestamp"], session["metadata"]["name"]
