"""Tables for people, JSON for programs."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from .._models import EgressDecision, EnvironmentInfo, SessionInfo
from .._outcomes import ProcessInfo

# Characters of a command line that a table shows.
_COMMAND = 100


def environments(found: Sequence[EnvironmentInfo], form: str, namespace: str) -> None:
    """Print Environments, or on stderr that the namespace has none."""
    if form == "json":
        _json([_plain(each) for each in found])
        return
    if not found:
        print(f"no Environments found in namespace {namespace}", file=sys.stderr)
        return
    rows = [
        [
            each.name,
            str(each.ready),
            f"{each.pool_ready}/{each.pool_size}",
            "" if each.ready else each.message or each.reason,
        ]
        for each in found
    ]
    _table(["NAME", "READY", "WARM", "MESSAGE"], rows)


def sessions(found: Sequence[SessionInfo], form: str, namespace: str) -> None:
    """Print sessions, or on stderr that there are none."""
    if form == "json":
        _json([_plain(each) for each in found])
        return
    if not found:
        print(f"no sessions found in namespace {namespace}", file=sys.stderr)
        return
    now = datetime.now(UTC)
    rows = [
        [each.name, each.environment, each.phase, each.pod_name, _age(each.created_at, now)]
        for each in found
    ]
    _table(["NAME", "ENVIRONMENT", "PHASE", "POD", "AGE"], rows)


def egress(found: Sequence[EgressDecision], form: str, name: str) -> None:
    """Print what a session tried to reach, or on stderr that it is not known to have."""
    if form == "json":
        _json([_plain(each) for each in found])
        return
    if not found:
        print(f"session {name} is not known to have tried to reach anything", file=sys.stderr)
        return
    now = datetime.now(UTC)
    rows = [
        [
            _host(each),
            "allowed" if each.allowed else "denied",
            each.reason,
            str(each.count),
            _age(each.last, now),
        ]
        for each in found
    ]
    _table(["HOST", "VERDICT", "REASON", "COUNT", "AGE"], rows)


def _host(decision: EgressDecision) -> str:
    if not decision.port:
        # Turned away before anybody heard where it wants to, as one connection of too many is.
        return "(any host)"
    return f"{decision.host or '(no name)'}:{decision.port}"


def programs(found: Sequence[ProcessInfo], form: str, name: str) -> None:
    """Print a session's programs, or on stderr that there are none."""
    if form == "json":
        _json([_plain(each) for each in found])
        return
    if not found:
        print(f"nothing runs or is kept in session {name}", file=sys.stderr)
        return
    now = datetime.now(UTC)
    rows = [
        [each.id, *_state(each), _age(each.started_at, now), shlex.join(each.argv)[:_COMMAND]]
        for each in found
    ]
    _table(["ID", "STATE", "EXIT", "AGE", "COMMAND"], rows)


def _state(program: ProcessInfo) -> tuple[str, str]:
    if program.running:
        return "running", ""
    if program.exit is None:
        return "not started", ""
    return program.exit.reason.replace("_", " "), str(program.exit.status)


def problem(error: Exception) -> None:
    """Print what went wrong as one line on stderr: a sandbox may have chosen its words."""
    print(f"cloister: {visible(' '.join(str(error).split()))}", file=sys.stderr)


def session(made: SessionInfo, form: str) -> None:
    """Print a new session: its name alone, ready for use in a script, or everything."""
    if form == "json":
        _json(_plain(made))
    else:
        print(made.name)


def _plain(value: EnvironmentInfo | SessionInfo | ProcessInfo | EgressDecision) -> dict[str, Any]:
    """Its fields in camelCase, as the custom resources have them."""
    return {_camel(name): each for name, each in dataclasses.asdict(value).items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(each.capitalize() for each in rest)


def _json(value: object) -> None:
    print(json.dumps(value, indent=2, default=_iso))


def _iso(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _table(header: list[str], rows: list[list[str]]) -> None:
    # Names and messages come from the cluster: none of them may move a terminal's cursor.
    cells = [header, *([visible(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print(
            "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def visible(text: str) -> str:
    """A text as a terminal may show it: it comes from elsewhere, and must not move the cursor."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _age(since: datetime | None, now: datetime) -> str:
    if since is None:
        return ""
    seconds = max(0, int((now - since).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
