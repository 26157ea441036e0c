"""Ends connections whose sandboxes do not take what comes for them, before memory runs out.

Each may hold megabytes in the sockets of a gateway, and nobody knows how many sandboxes will do so
together. So all of them share what there is, and whoever holds most loses connections first.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from . import buffers, metrics, places
from .buffers import Held
from .front import Front, FrontUnreachable
from .reports import Client, Key, Report, Sum
from .service import Feed, Holder
from .state import Reason

EVERY_SECONDS = 0.5
_FRONT = frozenset({places.FRONT_PORT, places.DIRECT_PORT})
_ACCEPTED = _FRONT | {places.NAMES_PORT, places.BY_NAME_PORT, places.SNI_PORT}
"""Whoever connected to these is nearer to a sandbox."""
log = logging.getLogger(__name__)


def surplus(found: Iterable[Held], most: int) -> set[Client]:
    """Whose connections are to end for three quarters of `most` bytes, or less, to be on the way to
    sandboxes; pure.

    What a connection holds behind its first socket is not known. Where one is full, those behind it
    are as well, so each counts for its share of everything. What is on the way to a server does not
    count: it stays in squid, which learns of no end before it has written that.
    """
    every = list(found)
    total = sum(each.queued if each.port in _ACCEPTED else each.received for each in every)
    if total <= most:
        return set()
    of: dict[str, list[Held]] = {}
    for each in every:
        # A connection on which nothing waits is in nobody's way.
        if each.port in _FRONT and each.far.address != places.LOOPBACK and each.queued:
            of.setdefault(each.far.address, []).append(each)
    for mine in of.values():
        mine.sort(key=lambda each: each.queued)
    sizes = {address: sum(each.queued for each in mine) for address, mine in of.items()}
    near = sum(sizes.values())
    to_free = (total - most * 3 // 4) / total * near
    waiting = [(-size, address) for address, size in sizes.items()]
    heapify(waiting)
    ended: set[Client] = set()
    while to_free > 0 and waiting:
        size, address = heappop(waiting)
        last = of[address].pop()
        ended.add(last.far)
        to_free -= last.queued
        if of[address]:
            heappush(waiting, (size + last.queued, address))
    return ended


class Pressure:
    """Looks at the sockets again and again."""

    def __init__(self, holder: Holder, front: Front, feed: Feed, most: int) -> None:
        """`most`: bytes that all sockets of the pod may hold together."""
        self._holder = holder
        self._front = front
        self._feed = feed
        self._most = most

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            began = time.monotonic()
            try:
                await self.look()
            except (OSError, FrontUnreachable) as error:
                log.warning("memory of connections is not bounded: %s", error)
            except Exception:
                log.exception("memory of connections is not bounded")
            # Ten thousands of sockets take a while to list, and the agent has other work.
            await asyncio.sleep(max(EVERY_SECONDS, 9 * (time.monotonic() - began)))

    async def look(self) -> None:
        """End what is too much now; OSError, FrontUnreachable."""
        found = await asyncio.to_thread(buffers.every)
        ended = surplus(found, self._most)
        if not ended:
            return
        await self._front.end(ended)
        now, report = time.time(), Report()
        for address, count in Counter(each.address for each in ended).items():
            source = self._holder.state.sources.get(address)
            uid = source.pod_uid if source else ""
            key = Key(address, uid, "", 0, Reason.TOO_MANY_CONNECTIONS.value)
            report.add(key, Sum(now, now, count))
            log.warning("%s does not take what comes: %d of its connections end", address, count)
        metrics.UNREAD.inc(len(ended))
        self._feed.take(report)
