"""Tells of connections that haproxy refused because their source had too many."""

import asyncio
import logging
import time
from collections.abc import Mapping

from .front import Front, FrontUnreachable
from .reports import Key, Report, Sum
from .service import Feed, Holder
from .state import Reason

EVERY_SECONDS = 1.0
log = logging.getLogger(__name__)


def grown(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """By source, how many came since. Counts begin anew with haproxy, and for who was long away."""
    found = {}
    for address, count in now.items():
        known = before.get(address, 0)
        more = count - known if count >= known else count
        if more:
            found[address] = more
    return found


class Refusals:
    """Asks haproxy every second, and feeds what it says."""

    def __init__(self, holder: Holder, front: Front, feed: Feed) -> None:
        self._holder = holder
        self._front = front
        self._feed = feed
        self._seen: Mapping[str, int] | None = None

    async def run(self) -> None:
        """Ask, for ever."""
        while True:
            try:
                self.take(await self._front.refused())
            except FrontUnreachable as error:
                log.debug("refused connections are not known: %s", error)
            await asyncio.sleep(EVERY_SECONDS)

    def take(self, counts: Mapping[str, int]) -> None:
        """Tell what is new in these counts; the first ones were told by the agent before."""
        now, report = time.time(), Report()
        if self._seen is not None:
            for address, more in grown(self._seen, counts).items():
                source = self._holder.state.sources.get(address)
                uid = source.pod_uid if source else ""
                key = Key(address, uid, "", 0, Reason.TOO_MANY_CONNECTIONS.value)
                report.add(key, Sum(now, now, more))
        self._seen = counts
        self._feed.take(report)
