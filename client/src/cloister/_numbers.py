"""Numbers that callers give: a wrong one is refused by its name, before a message refuses it."""

import math
import operator
from typing import Any

from google.protobuf.duration_pb2 import Duration

UINT32 = 2**32 - 1
UINT64 = 2**64 - 1
_LONGEST = 315_576_000_000
"""Seconds that a message holds at most: ten thousand years."""


def whole(name: str, value: int, least: int = 0, most: int = UINT64) -> int:
    """The number.

    Raises ValueError when it is too small or too large, TypeError when it is no whole number; both
    name the argument.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r:.50}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {_shown(number)}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, not {_shown(number)}")
    return number


def duration(name: str, seconds: float) -> Duration:
    """Seconds as a message; raises ValueError and TypeError, which name the argument."""
    number = some(name, seconds)
    if not 0 <= number <= _LONGEST:
        raise ValueError(f"{name} must be from 0 to {_LONGEST} s, not {number:g}")
    return Duration(seconds=int(number), nanos=int(number % 1 * 1e9))


def some(name: str, value: float) -> float:
    """The number, however large; raises ValueError and TypeError, which name the argument."""
    given: Any = value
    if isinstance(given, str | bytes):  # of which Python would make a number
        raise TypeError(f"{name} must be a number, not {given!r:.50}")
    try:
        number = float(given)
    except TypeError:
        raise TypeError(f"{name} must be a number, not {given!r:.50}") from None
    except OverflowError:
        number = math.inf if given > 0 else -math.inf
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, not nan")
    return number


def _shown(number: int) -> str:
    """A number in few digits: Python refuses to write those of a very large one."""
    return str(number) if abs(number) <= UINT64 else "a number of more than 64 bits"
