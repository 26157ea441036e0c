"""Pods that were asked for and of which no answer said whether they were made."""

from collections.abc import Hashable
from datetime import datetime, timedelta

EXPIRES_AFTER = timedelta(minutes=5)
"""What has not been seen by then was not made, or goes its own way."""


class Flights:
    """Names of such pods, by whom they are for: each is asked for again under its own name, so that
    a lost answer makes no second pod.
    """

    def __init__(self) -> None:
        self._names: dict[Hashable, dict[str, datetime]] = {}

    def count(self, who: Hashable, now: datetime) -> int:
        """How many there may be."""
        self._expire(who, now)
        return len(self._names.get(who, ()))

    def take(self, who: Hashable, now: datetime) -> str | None:
        """The name of one, which is the caller's to ask for now."""
        self._expire(who, now)
        mine = self._names.get(who)
        if not mine:
            return None
        name = next(iter(mine))
        self._drop(who, name)
        return name

    def lost(self, who: Hashable, name: str, now: datetime) -> None:
        """No answer came."""
        for other in list(self._names):
            self._expire(other, now)
        self._names.setdefault(who, {})[name] = now

    def _expire(self, who: Hashable, now: datetime) -> None:
        for name, since in list(self._names.get(who, {}).items()):
            if now >= since + EXPIRES_AFTER:
                self._drop(who, name)

    def _drop(self, who: Hashable, name: str) -> None:
        mine = self._names[who]
        del mine[name]
        if not mine:
            del self._names[who]
