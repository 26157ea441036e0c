"""Which connections to the Sessions API stay: anybody in the cluster may open some.

gRPC bounds how many there are, and knows nobody: whoever is first has all places. So connections
are told apart by what came over them. One that shows no valid token ends soon, an address has few
of these, and when places get scarce, whoever has most of them loses the oldest.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from ..metrics import SESSIONS_API_ENDED

NO_TOKEN, ONE_ADDRESS, CROWDED = "no_token", "one_address", "crowded"
SLOWLY: Final = 1.0
"""Seconds between two looks."""
PRESSED: Final = 0.2
"""The same while somebody has more connections than they may."""
NOTED_SECONDS: Final = 60.0
"""So long an address that had too many is shown no patience."""
_FOLDER: Final = Path("/proc/self/fd")
log = logging.getLogger(__name__)


class FarEnd(NamedTuple):
    """Where a connection comes from."""

    address: str
    port: int


@dataclass(frozen=True)
class Bounds:
    """Of the connections of one process."""

    room: int = 3072
    """With more than these, whoever has most loses some. Less than gRPC takes, so that others find
    a place meanwhile."""
    strangers_of_one: int = 32
    """Connections of one address that have shown no token."""
    patience: float = 2.0
    """Seconds in which these do not count: many callers behind one address may come at once."""
    seconds: float = 20.0
    """How long a connection may be without a token."""
    share: int = 64
    """Connections of one caller, or of the ServiceAccounts of one namespace together, that are no
    more in the way of others than a stranger's. Any pod with a token is a caller, whatever its
    rights."""


@dataclass(frozen=True)
class Connection:
    """One of them, as of now."""

    far_end: FarEnd
    since: float
    """Monotonic seconds."""
    caller: str = ""
    """Of whose share the token is that it showed; empty for none that is valid."""


def surplus(
    found: Iterable[Connection], now: float, noted: Collection[str] = (), bounds: Bounds = Bounds()
) -> dict[Connection, str]:
    """What is to end, and why; pure.

    Args:
        found: All connections.
        now: Monotonic seconds.
        noted: Addresses that had too many a short while ago.
        bounds: How many, and for how long.
    """
    every = sorted(found, key=lambda each: each.since)
    ended: dict[Connection, str] = {}
    strangers: dict[str, list[Connection]] = {}
    callers: dict[str, list[Connection]] = {}
    for each in every:
        if each.caller:
            callers.setdefault(each.caller, []).append(each)
        elif now - each.since > bounds.seconds:
            ended[each] = NO_TOKEN
        else:
            strangers.setdefault(each.far_end.address, []).append(each)
    for address, mine in strangers.items():
        patience = 0.0 if address in noted else bounds.patience
        too_many = mine[: max(0, len(mine) - bounds.strangers_of_one)]
        ended |= {each: ONE_ADDRESS for each in too_many if now - each.since >= patience}
        strangers[address] = [each for each in mine if each not in ended]
    left = len(every) - len(ended) - bounds.room
    greedy = {who: mine[: -bounds.share] for who, mine in callers.items()}
    modest = {who: mine[-bounds.share :] for who, mine in callers.items()}
    # Strangers before modest callers: it is known of these who they are.
    for group in (greedy, strangers, modest):
        crowded = list(_most_first(group, left))
        ended |= dict.fromkeys(crowded, CROWDED)
        left -= len(crowded)
    return ended


def _most_first(group: Mapping[str, list[Connection]], count: int) -> Iterator[Connection]:
    """So many connections at most, each the oldest of whoever has most by then."""
    waiting = [(-len(mine), owner, 0) for owner, mine in group.items() if mine]
    heapify(waiting)
    while count > 0 and waiting:
        size, owner, at = heappop(waiting)
        yield group[owner][at]
        count -= 1
        if size < -1:
            heappush(waiting, (size + 1, owner, at + 1))


class Doorkeeper:
    """Looks again and again at the connections to one port of this process, and ends the surplus.

    It needs no word from gRPC, which tells of no connection: sockets that this process has opened
    are listed by the kernel, and shutting one down is for gRPC as if its far end had left.
    """

    def __init__(
        self, bounds: Bounds = Bounds(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock`: monotonic seconds."""
        self._bounds = bounds
        self._clock = clock
        self._since: dict[FarEnd, float] = {}
        self._callers: dict[FarEnd, str] = {}
        self._noted: dict[str, float] = {}
        """Addresses, and until when."""

    def heard(self, far_end: FarEnd, caller: str) -> None:
        """A valid token came over a connection; `caller`: of whose share it is."""
        known = self._callers.setdefault(far_end, caller)
        if known != caller:
            # Another operator, which forwards calls: none of these callers is to pay for it.
            self._callers[far_end] = f"several at {far_end.address}"

    async def run(self, port: int) -> None:
        """Look until cancelled."""
        while True:
            began = self._clock()
            try:
                pressed = self.look(port)
            except OSError as error:
                log.warning("connections cannot be listed: %s", error)
                pressed = False
            except Exception:
                # Without it, whoever comes first would have all places for good.
                log.exception("connections cannot be looked at")
                pressed = False
            # Thousands of connections take a while to look at, and the loop has other work.
            took = self._clock() - began
            await asyncio.sleep(max(PRESSED if pressed else SLOWLY, 9 * took))

    def look(self, port: int) -> bool:
        """End the surplus; returns whether there is or lately was some. OSError."""
        now, there = self._clock(), connections(port)
        self._since = {each: self._since.get(each, now) for each in there}
        self._callers = {each: who for each, who in self._callers.items() if each in there}
        self._noted = {each: until for each, until in self._noted.items() if until > now}
        found = [
            Connection(each, since, self._callers.get(each, ""))
            for each, since in self._since.items()
        ]
        ended = surplus(found, now, self._noted, self._bounds)
        for each, why in ended.items():
            _end(there[each.far_end], each.far_end, port)
            if why == ONE_ADDRESS:
                self._note(each.far_end.address, now)
        for why, count in Counter(ended.values()).items():
            SESSIONS_API_ENDED.labels(why).inc(count)
        return bool(self._noted) or CROWDED in ended.values()

    def _note(self, address: str, now: float) -> None:
        if address not in self._noted:
            log.warning("%s has too many connections without a token: they end", address)
        self._noted[address] = now + NOTED_SECONDS


def of_peer(text: str) -> FarEnd | None:
    """A peer as gRPC names it, such as `ipv4:10.0.0.1:4567`; None for one without an address."""
    family, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    if family not in ("ipv4", "ipv6") or not (port.isascii() and port.isdigit()):
        return None
    return FarEnd(_plain(host.strip("[]")), int(port))


def connections(port: int) -> dict[FarEnd, int]:
    """By where it comes from, the descriptor of each connection to a port of ours. OSError."""
    found = {}
    for descriptor in [int(each.name) for each in _FOLDER.iterdir()]:
        with contextlib.suppress(OSError), _held(descriptor) as made:
            far_end = _far_end(made, port)
            if far_end is not None:
                found[far_end] = descriptor
    return found


def _end(descriptor: int, far_end: FarEnd, port: int) -> None:
    # It may be another one's by now, or gone, which is what was wanted.
    with contextlib.suppress(OSError), _held(descriptor) as made:
        if _far_end(made, port) == far_end:
            made.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _held(descriptor: int) -> Iterator[socket.socket]:
    """A socket under a descriptor of our own: gRPC may close its own at any moment. OSError."""
    copy = os.dup(descriptor)
    try:
        made = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with made:
        yield made


def _far_end(made: socket.socket, port: int) -> FarEnd | None:
    """Where a connection to the port comes from; None for another socket. OSError if it is over."""
    if made.family not in (socket.AF_INET, socket.AF_INET6) or made.getsockname()[1] != port:
        return None
    host, far_port, *_ = made.getpeername()
    return FarEnd(_plain(host), far_port)


def _plain(host: str) -> str:
    """An address in one way of writing it, whatever it came over."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
