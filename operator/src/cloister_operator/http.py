"""Metrics and health over plain HTTP, for the kubelet and for Prometheus."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from cloister_api.pages import Pages

from . import names
from .api.backend import HealthState
from .metrics import LOOP_LAG_SECONDS, REGISTRY

LAG_INTERVAL = 0.5
"""Seconds between two looks at the event loop's lag."""


class HttpServer:
    """Serves /metrics, /healthz (liveness) and /readyz (readiness)."""

    def __init__(
        self,
        health: HealthState,
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: monotonic seconds."""
        self._pages = Pages({"/healthz": health.live, "/readyz": health.ready}, registry, clock)
        self._lag: asyncio.Task[None] | None = None

    async def start(self, host: str | None = None, port: int = names.HTTP_PORT) -> int:
        """Listen, on every address by default; returns the port. OSError when it is taken."""
        bound = await self._pages.start(host, port)
        self._lag = asyncio.create_task(_measure_lag(), name="loop-lag")
        return bound

    async def stop(self) -> None:
        """Stop listening and measuring."""
        if self._lag is not None:
            self._lag.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._lag
        await self._pages.stop()


async def _measure_lag() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        LOOP_LAG_SECONDS.observe(max(0.0, loop.time() - due))
