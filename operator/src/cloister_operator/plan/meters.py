"""How long a session has run and worked: from times in its status, so that no restart loses any.

What its earlier pods account for is kept in milliseconds and the present pod's start to the
microsecond: rounding happens once, in what is shown.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..api.conditions import parse_time, precise, timestamp
from ..api.session import Phase, SessionStatus

_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Reading:
    """What a pod said of itself, and when that was asked."""

    at: datetime
    idle_for: timedelta
    active: timedelta
    """Since its claim."""
    running_calls: int = 0


def started(status: SessionStatus, now: datetime) -> dict[str, Any]:
    """Status changes when a session gets a pod at `now`."""
    return {
        "started_at": status.started_at or timestamp(now),
        "running_since": precise(now),
        "last_activity_time": timestamp(now),
        "suspended_at": None,
    }


def read(status: SessionStatus, reading: Reading) -> dict[str, Any]:
    """Status changes after the present pod was asked."""
    since = _since(status, reading.at)
    last = reading.at if reading.running_calls else max(since, reading.at - reading.idle_for)
    active = _active(status, reading)
    return {
        "running_seconds": _seconds(_running(status, reading.at)),
        "active_seconds": max(status.active_seconds, _seconds(active)),
        # Rounded up: rounded down the deadline would be due again at once.
        "last_activity_time": timestamp(last + timedelta(seconds=last.microsecond > 0)),
    }


def stopped(status: SessionStatus, now: datetime, reading: Reading | None) -> dict[str, Any]:
    """Status changes when a session loses its pod at `now`.

    Without a last `reading`, the pod accounts for as much work as it had said before.
    """
    if status.started_at is None:
        return {}
    running = _running(status, now)
    active = timedelta(
        milliseconds=max(status.earlier_active_milliseconds, 1000 * status.active_seconds)
    )
    changes: dict[str, Any] = {}
    if reading:
        active = max(active, _active(status, reading))
        changes = read(status, reading)
    return changes | {
        "running_since": None,
        "earlier_running_milliseconds": running // _MILLISECOND,
        "earlier_active_milliseconds": active // _MILLISECOND,
        "running_seconds": _seconds(running),
        "active_seconds": _seconds(active),
    }


def ran(status: SessionStatus, now: datetime) -> timedelta:
    """How long a session has run by `now`, in all of its pods."""
    return _running(status, now)


def _since(status: SessionStatus, now: datetime) -> datetime:
    if status.running_since:
        return parse_time(status.running_since)
    # A session that an older version of the operator started.
    if status.phase is Phase.RUNNING and status.started_at:
        return parse_time(status.started_at)
    return now


def _running(status: SessionStatus, now: datetime) -> timedelta:
    earlier = timedelta(milliseconds=status.earlier_running_milliseconds)
    return earlier + max(timedelta(), now - _since(status, now))


def _active(status: SessionStatus, reading: Reading) -> timedelta:
    # A pod's word is untrusted: it cannot have worked for longer than it ran.
    ran = max(timedelta(), reading.at - _since(status, reading.at))
    return timedelta(milliseconds=status.earlier_active_milliseconds) + min(reading.active, ran)


def _seconds(span: timedelta) -> int:
    return span // timedelta(seconds=1)
