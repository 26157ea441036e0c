"""What an attack is, how it is carried out, and who says whether it succeeded.

A row succeeds when anything answers a sandbox that must not, or when anything arrives at the far
side that the row does not allow. It proves nothing unless the same targets answer the node.
"""

import itertools
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cloister
from cloister_operator.plan.proving import METADATA
from cloister_operator.settings import Settings
from redteam.targets import Targets
from support.fake_internet import PROBE, Event, FakeInternet

JSON = dict[str, Any]
Attempts = Callable[[Targets], Sequence[JSON]]
Harmless = Callable[[Event], bool]
IN_POD = "/tmp/probe.py"
ANSWERED = "answered"
"""Marks an attempt that may be answered: only what arrives says whether it succeeded."""
_NAMESERVERS: tuple[str, ...] = Settings.model_fields["egress_nameservers"].default
PROVEN = (*METADATA, *(f"{each}:53" for each in _NAMESERVERS))
"""What the operator tries in every new pod, until it is closed."""
TRIES = 3
_serial = itertools.count()


class AttackSucceeded(AssertionError):
    """A sandbox did what it must not; the message says what was reached, or what arrived."""


class DoubtfulError(AttackSucceeded):
    """What arrived may be the operator's own proof in a new pod, of the very address."""


class ControlFailed(AssertionError):
    """The row proves nothing: its targets do not answer whom they should."""


def nothing(_: Event) -> bool:
    """No event is harmless: nothing at all may arrive."""
    return False


@dataclass(frozen=True)
class Attack:
    """One row."""

    name: str
    attempts: Attempts
    """What is tried in the sandbox, at once."""
    control: Attempts | None = None
    """What must be reached from the node: the attempts themselves, unless told otherwise."""
    heard: bool = False
    """It is enough that the far side hears the control: nothing answers this by itself."""
    harmless: Harmless = nothing
    """What may arrive at the far side all the same."""


def row(name: str, *attempts: JSON, **rest: Any) -> Attack:
    """A row whose attempts are known beforehand."""
    return Attack(name, lambda _: attempts, **rest)


def in_pod(session: cloister.Session, attempts: Sequence[JSON], *how: float) -> list[JSON]:
    """Run attempts in a session's pod; `how`: for so many seconds, by so many threads each."""
    name = f"/tmp/attempts-{next(_serial)}.json"
    told = [{key: value for key, value in each.items() if key != ANSWERED} for each in attempts]
    session.write(name, json.dumps(told))
    result = session.bash(
        f"python3 {IN_POD} {' '.join(map(str, how))} < {shlex.quote(name)}",
        timeout_ms=120_000,
        # What goes on for long leaves the shell to others.
        context="storm" if how else "",
    )
    assert not result.is_error, result.text
    found: list[JSON] = json.loads(result.text)
    return found


def arm(session: cloister.Session) -> None:
    """Bring the attacker's program into a session's pod."""
    session.write(IN_POD, PROBE.read_text())


def carry_out(
    attack: Attack,
    session: cloister.Session,
    world: FakeInternet,
    targets: Targets,
    beside: JSON | None = None,
) -> None:
    """Check the control, then attack; raises ControlFailed or AttackSucceeded.

    `beside`: what the sandbox may do and must achieve at the same time, through the same gateway.
    """
    check_control(attack, world, targets)
    attempts = list(attack.attempts(targets))
    legitimate = [beside] if beside else []
    for left in reversed(range(TRIES)):
        mark = world.mark()
        results = in_pod(session, [*legitimate, *attempts])
        events = world.since(mark)
        if beside and not results[0]["reached"]:
            said = results[0]["said"]
            raise ControlFailed(f"{attack.name}: what is allowed fails beside it: {said}")
        try:
            judge(attack, attempts, results[len(legitimate) :], events)
        except DoubtfulError:
            # What gets out does so again; no proof is under way beside it each time.
            if not left:
                raise
        else:
            return


def check_control(attack: Attack, world: FakeInternet, targets: Targets) -> None:
    """Reach the same targets from the node; raises ControlFailed."""
    attempts = list((attack.control or attack.attempts)(targets))
    if not attempts:
        return
    mark = world.mark()
    results = world.probe(attempts)
    silent = [
        f"{attempt}: {result['said']}"
        for attempt, result in zip(attempts, results, strict=True)
        if not result["reached"]
    ]
    if silent and not (attack.heard and world.since(mark)):
        raise ControlFailed(f"{attack.name}: no answer to the node: {'; '.join(silent)}")


def of_proof(event: Event) -> bool:
    """Whether the operator's own proof may have made it, in a new pod that is not closed yet: it
    connects, and says nothing.
    """
    silent = event.kind == "packet" or (event.kind == "raw" and not event.first)
    return silent and f"{event.dst}:{event.port}" in PROVEN


def judge(
    attack: Attack, attempts: Sequence[JSON], results: Sequence[JSON], events: Sequence[Event]
) -> None:
    """Look at both sides; raises AttackSucceeded."""
    reached = [
        f"{attempt}: {result['said']}"
        for attempt, result in zip(attempts, results, strict=True)
        if result["reached"] and not attempt.get(ANSWERED)
    ]
    if reached:
        raise AttackSucceeded(f"{attack.name}: {'; '.join(reached)}")
    aimed = {str(attempt.get("host", "")) for attempt in attempts}
    arrived = [
        each
        for each in events
        if not attack.harmless(each) and not (of_proof(each) and each.dst not in aimed)
    ]
    if arrived:
        kind = DoubtfulError if all(map(of_proof, arrived)) else AttackSucceeded
        raise kind(f"{attack.name}: arrived outside: {'; '.join(map(str, arrived[:5]))}")
