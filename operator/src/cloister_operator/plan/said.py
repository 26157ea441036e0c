"""What this process told the sessions that wait, so that it argues slowly with another one."""

from dataclasses import dataclass
from datetime import datetime, timedelta

CONTRADICTED = timedelta(seconds=30)
"""Another process that still believes that it leads may know an Environment as it was, or as it is,
and put its own reason in place of this one's. This process then leaves that for so long: each would
put its word back at once, as fast as they can write, until one of them has looked again.
"""


Word = tuple[str, str]
"""Reason and message of the condition Ready."""


@dataclass(frozen=True)
class _Last:
    uid: str
    word: Word
    at: datetime


class Said:
    """The last word of this process to each session that waits.

    It is lost at a restart, as it may be: a first word is never held back.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], _Last] = {}

    def note(self, key: tuple[str, str], uid: str, word: Word, at: datetime) -> None:
        """This process has written to the session, of that name and UID, why it waits."""
        self._last[key] = _Last(uid, word, at)

    def contradicted_until(
        self, key: tuple[str, str], uid: str, there: Word, now: datetime
    ) -> datetime | None:
        """When to write one's own word over what is there now: None is at once, as it is where
        nobody has written anything else over one's last word.
        """
        last = self._last.get(key)
        if last is None or last.uid != uid or last.word == there:
            return None
        until = last.at + CONTRADICTED
        return until if now < until else None

    def forget(self, key: tuple[str, str]) -> None:
        """The session waits no more."""
        self._last.pop(key, None)
