"""Metrics and health over plain HTTP, for the kubelet and for Prometheus."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from . import names
from .api.backend import HealthState
from .metrics import LOOP_LAG_SECONDS, REGISTRY

METRICS_SECONDS = 1.0
"""Whoever asks again within this time gets the same answer: anybody in the cluster may ask, and
what writes it down keeps everybody else waiting."""
LAG_INTERVAL = 0.5
"""Seconds between two looks at the event loop's lag."""


class HttpServer:
    """Serves /metrics, /healthz (liveness) and /readyz (readiness).

    A health answer is 200 `ok`, or 503 with the sentence that HealthState gives.
    """

    def __init__(
        self,
        health: HealthState,
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: monotonic seconds."""
        self._health = health
        self._registry = registry
        self._clock = clock
        self._written: tuple[float, bytes] | None = None
        """The metrics, and when they were written down."""
        self._runner: web.AppRunner | None = None
        self._lag: asyncio.Task[None] | None = None

    async def start(self, host: str | None = None, port: int = names.HTTP_PORT) -> int:
        """Listen, on every address by default; returns the port. OSError when it is taken."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._live)
        app.router.add_get("/readyz", self._ready)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=30)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self._lag = asyncio.create_task(_measure_lag(), name="loop-lag")
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Stop listening and measuring."""
        if self._lag is not None:
            self._lag.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._lag
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        now = self._clock()
        if self._written is None or now - self._written[0] >= METRICS_SECONDS:
            self._written = now, generate_latest(self._registry)
        return web.Response(body=self._written[1], headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _live(self, _: web.Request) -> web.Response:
        return _answer(self._health.live())

    async def _ready(self, _: web.Request) -> web.Response:
        return _answer(self._health.ready())


def _answer(problem: str | None) -> web.Response:
    return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")


async def _measure_lag() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        LOOP_LAG_SECONDS.observe(max(0.0, loop.time() - due))
