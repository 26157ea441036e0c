"""kopf hands over the events of custom resources; nothing else happens here.

kopf runs in a thread with a loop of its own: at its end it cancels what it finds on its loop.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from . import names
from .api.common import JSON
from .cluster.login import find

log = logging.getLogger(__name__)

Observe = Callable[[str, str | None, JSON], None]

_MOST_ENDS = 5
_LASTED_SECONDS = 60.0
"""kopf ends when the API server answers its watch with 410, as it does after a restart or a long
absence, or anything else that kopf does not know. It begins again with lists, and so misses nothing
but deletions, which the next resync finds. Where it ends again and again, the process starts again.
"""


class _Forever:
    """Backoffs without an end: an API server that is away must not end the operator."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.2, 0.5, 1.0)
        yield from itertools.repeat(2.0)


def settings() -> kopf.OperatorSettings:
    """kopf without what it would write or decide by itself."""
    made = kopf.OperatorSettings()
    made.networking.error_backoffs = _Forever()
    made.networking.request_timeout = 15
    made.networking.connect_timeout = 3
    # A watch that is dead without a sign is given up after this.
    made.watching.server_timeout = 240
    made.watching.client_timeout = 270
    made.watching.connect_timeout = 3
    made.scanning.disabled = True
    made.posting.enabled = False
    made.peering.standalone = True
    made.execution.max_workers = 2
    return made


def registry(observe: Observe) -> kopf.OperatorRegistry:
    """Handlers that only pass on what happened."""
    made = kopf.OperatorRegistry()

    @kopf.on.login(registry=made)
    def login(**_: Any) -> kopf.ConnectionInfo | None:
        return find()

    def pass_on(resource: str) -> None:
        @kopf.on.event(names.GROUP, names.VERSION, resource, registry=made, id=resource)
        async def changed(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002
            observe(resource, type, dict(body))

    pass_on(names.ENVIRONMENTS)
    pass_on(names.SESSIONS)
    return made


class Watcher:
    """The thread that runs kopf."""

    def __init__(self, observe: Observe, ended: Callable[[], None]) -> None:
        """`observe` and `ended` are called on the loop that is running now; `ended` when kopf ends
        again and again.
        """
        self._loop = asyncio.get_running_loop()
        self._observe = observe
        self._ended = ended
        self._stopped = False
        self._stopping: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        """kopf's loop, and what ends kopf there. One that a thread waits for would keep kopf from
        ending by itself: a loop ends only after its threads.
        """
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop watching, and wait for the thread."""
        self._stopped = True
        if self._stopping:
            loop, stopping = self._stopping
            with contextlib.suppress(RuntimeError):
                # The loop may be over.
                loop.call_soon_threadsafe(stopping.set)
        await asyncio.to_thread(self._thread.join, 10)

    def _run(self) -> None:
        ended = 0
        while not self._stopped and ended < _MOST_ENDS:
            began = time.monotonic()
            try:
                asyncio.run(self._watch())
            except (Exception, asyncio.CancelledError):
                # Whatever it ends by, nobody but this thread knows that it did.
                log.exception("kopf ended")
            if time.monotonic() - began > _LASTED_SECONDS:
                ended = 0
            ended += 1
        if not self._stopped:
            self._loop.call_soon_threadsafe(self._ended)

    async def _watch(self) -> None:
        def hand_over(resource: str, kind: str | None, obj: JSON) -> None:
            self._loop.call_soon_threadsafe(self._observe, resource, kind, obj)

        stopping = asyncio.Event()
        self._stopping = asyncio.get_running_loop(), stopping
        if self._stopped:
            return
        await kopf.operator(
            registry=registry(hand_over),
            settings=settings(),
            clusterwide=True,
            standalone=True,
            stop_flag=stopping,
        )
