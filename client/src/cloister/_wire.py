"""Values of messages as Python has them: also those that a newer server knows, or no honest one."""

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

UNKNOWN = "unknown"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
"""Seconds from 1970 to the beginning of year 1, and to the last second of year 9999."""
_NANOS = 999_999_999


def word(kind: Any, number: int, prefix: str) -> str:
    """The name of an enum's value without its prefix, in small letters; `unknown` without one."""
    try:
        name: str = kind.Name(number)
    except ValueError:
        return UNKNOWN
    return name.removeprefix(prefix).lower()


def moment(stamp: Timestamp) -> datetime:
    """The time; the nearest one that there is for what is no time."""
    seconds = min(max(stamp.seconds, _FIRST), _LAST)
    return _EPOCH + timedelta(
        seconds=seconds, microseconds=min(max(stamp.nanos, 0), _NANOS) // 1000
    )


def span(duration: Duration) -> float:
    """Seconds."""
    return duration.seconds + duration.nanos / 1e9
