"""Health and metrics over plain HTTP, for the kubelet and for Prometheus.

Needs aiohttp and prometheus_client, which the operator and the egress gateway have.
"""

import time
from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from .visitors import Visitors

METRICS_SECONDS = 1.0
"""Whoever asks again within this time gets the same answer: anybody in the cluster may ask, and
what writes it down keeps everybody else waiting."""


class Pages:
    """Serves /metrics, and pages that say of something whether it is well.

    Such an answer is 200 `ok`, or 503 with a sentence that says what is wrong.
    """

    def __init__(
        self,
        health: Mapping[str, Callable[[], str | None]],
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`health`: by path, what is wrong now, empty or None for nothing; `clock`: monotonic
        seconds.
        """
        self._health = health
        self._registry = registry
        self._clock = clock
        self._written: tuple[float, bytes] | None = None
        """The metrics, and when they were written down."""
        self._runner: web.ServerRunner | None = None

    async def start(self, host: str | None, port: int) -> int:
        """Listen, on every address without `host`; returns the port. OSError when it is taken."""
        self._runner = web.ServerRunner(Visitors(self._answer))
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Serve no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        health = self._health.get(request.path)
        if health is None and request.path != "/metrics":
            return web.Response(status=404)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        if health is None:
            return self._metrics()
        problem = health()
        return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

    def _metrics(self) -> web.Response:
        now = self._clock()
        if self._written is None or now - self._written[0] >= METRICS_SECONDS:
            self._written = now, generate_latest(self._registry)
        return web.Response(body=self._written[1], headers={"Content-Type": CONTENT_TYPE_LATEST})
