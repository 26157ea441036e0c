"""Which decision a connection belongs to: haproxy knows its bytes, the helper its host. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .ranges import plain
from .reports import Client, Key, Sum

MAX_OPEN = 200_000
MAX_ENDED = 20_000
MEETING_SECONDS = 10.0
"""The two tell of a connection within this time of each other, when it ends at once."""


class Ended(NamedTuple):
    """What haproxy says of a connection that is over."""

    client: Client
    sent: int
    received: int


def ended(line: bytes) -> Ended | None:
    """A line of haproxy's log, `address port sent received`; None for anything else."""
    try:
        address, port, sent, received = line.decode("ascii").split()
        return Ended(Client(str(plain(address)), int(port)), int(sent), int(received))
    except ValueError:
        return None


@dataclass
class Connections:
    """Those that are open, and those that ended before it was known what they were for.

    Of connections that began before the agent did, or beyond the bounds, the bytes are not told.
    """

    _open: dict[Client, Key] = field(default_factory=dict)
    _ended: dict[Client, tuple[float, Ended]] = field(default_factory=dict)

    def began(self, opened: Mapping[Client, Key], now: float) -> list[tuple[Key, Sum]]:
        """Take what a helper admitted; returns what is to be told of those that ended already.

        `now`: seconds since the epoch.
        """
        found = []
        for client, key in opened.items():
            known = self._ended.pop(client, None)
            if known is not None:
                found.append((key, _sum(known[1], now)))
            elif len(self._open) < MAX_OPEN:
                self._open[client] = key
        return found

    def over(self, each: Ended, now: float) -> tuple[Key, Sum] | None:
        """Take the end of a connection; returns what is to be told of it, if that is known yet."""
        key = self._open.pop(each.client, None)
        if key is not None:
            return key, _sum(each, now)
        if len(self._ended) < MAX_ENDED:
            self._ended[each.client] = now, each
        return None

    def forget(self, now: float) -> None:
        """Forget connections that nobody admitted. Called now and then."""
        while self._ended:
            client, (at, _) = next(iter(self._ended.items()))
            if now - at < MEETING_SECONDS:
                return
            del self._ended[client]


def _sum(each: Ended, now: float) -> Sum:
    return Sum(now, now, 0, each.sent, each.received)
