"""Metrics and health over plain HTTP, for the kubelet and for Prometheus."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cloister_api.visitors import Visitors

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
        self._runner: web.ServerRunner | None = None
        self._lag: asyncio.Task[None] | None = None

    async def start(self, host: str | None = None, port: int = names.HTTP_PORT) -> int:
        """Listen, on every address by default; returns the port. OSError when it is taken."""
        self._runner = web.ServerRunner(Visitors(self._answer))
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

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        answers = {"/metrics": self._metrics, "/healthz": self._live, "/readyz": self._ready}
        answer = answers.get(request.path)
        if answer is None:
            return web.Response(status=404)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        return answer()

    def _metrics(self) -> web.Response:
        now = self._clock()
        if self._written is None or now - self._written[0] >= METRICS_SECONDS:
            self._written = now, generate_latest(self._registry)
        return web.Response(body=self._written[1], headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _live(self) -> web.Response:
        return _said(self._health.live())

    def _ready(self) -> web.Response:
        return _said(self._health.ready())


def _said(problem: str | None) -> web.Response:
    return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")


async def _measure_lag() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        LOOP_LAG_SECONDS.observe(max(0.0, loop.time() - due))
