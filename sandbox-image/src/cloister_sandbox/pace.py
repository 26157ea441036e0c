"""Letting small calls go before the pieces of transfers.

A transfer takes all of a core that it can get, and each of its pieces keeps the event loop for part
of a millisecond. Somebody who waits for the answer to a small call notices that; somebody who waits
for a gigabyte does not. So while small calls come, pieces wait, one after the other and never long:
transfers slow down then, and do not stop.
"""

import asyncio
import time

QUIET = 0.003
"""Seconds after the end of a small call in which the next one is expected."""
QUICK = 0.03
"""Seconds for which a call that goes on counts as small: a command may run for hours."""
LONGEST = 0.005
"""Seconds that one piece waits at most."""


class Pace:
    """Used on the event loop only."""

    def __init__(self) -> None:
        self._until = 0.0
        self._queue = asyncio.Lock()

    def __enter__(self) -> None:
        """A small call begins."""
        self._until = time.monotonic() + QUICK

    def __exit__(self, *_: object) -> None:
        """It ends."""
        self._until = time.monotonic() + QUIET

    async def turn(self) -> None:
        """Wait until one piece may go."""
        if time.monotonic() >= self._until and not self._queue.locked():
            return
        async with self._queue:
            now = time.monotonic()
            latest = now + LONGEST
            while now < (until := min(self._until, latest)):
                await asyncio.sleep(until - now)
                now = time.monotonic()
