"""The present time as the API server has it.

What the operator compares with its own clock was stamped by the API server's: when a pod was made
above all. On a machine whose clock lags a failed pod would be kept for as much longer, and on one
that is ahead no failure would count as a new one, so that pods were made as fast as they fail.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from ..metrics import CLOCK_OFFSET

log = logging.getLogger(__name__)

_SECOND = timedelta(seconds=1)
_WORTH_SAYING = timedelta(seconds=5)
"""A clock that is off by so much is worth a warning, and a change by so much another one."""


def _own() -> datetime:
    return datetime.now(UTC)


class ServerClock:
    """This machine's clock, put right by what answers of the API server say.

    An answer's `Date` is cut to the second, and was written at some moment between the question and
    the answer. The clock is moved only as far as it takes to agree with that: one that is right is
    never moved, and a slow answer moves it no further than it must.
    """

    def __init__(self, own: Callable[[], datetime] = _own) -> None:
        """`own`: this machine's clock, in UTC."""
        self.own = own
        self._offset = timedelta()
        self._said = timedelta()

    def __call__(self) -> datetime:
        """The present time, in UTC."""
        return self.own() + self._offset

    def heard(self, date: str | None, asked: datetime) -> None:
        """An answer with this `Date` has come; `asked` is when, by `own`, it was asked for."""
        try:
            server = parsedate_to_datetime(date or "")
        except (ValueError, OverflowError):
            return
        if server.tzinfo is None:
            return
        least, most = server - self.own(), server + _SECOND - asked
        if least > most:
            # This machine's clock was put back in between.
            return
        self._offset = min(max(self._offset, least), most)
        CLOCK_OFFSET.set(self._offset.total_seconds())
        if abs(self._offset - self._said) >= _WORTH_SAYING:
            self._said = self._offset
            log.warning(
                "the API server's clock is %+.0f s from this machine's, and counts here",
                self._offset.total_seconds(),
            )
