"""Whether the pod's processes answer, asked as a sandbox would ask; served for the kubelet."""

import asyncio
import contextlib
import time

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cloister_api.visitors import Visitors

from . import metrics, places
from .front import Front
from .service import Holder

_EVERY = 2.0
_TIMEOUT = 5.0
_METRICS_SECONDS = 1.0
"""Whoever asks again within this time gets the same answer: anybody in the cluster may ask."""
# PROXY protocol v1: the connection of nobody, from loopback. No source has such an address.
_AS_NOBODY = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n"
_ASK_NAMES = _AS_NOBODY + b"CONNECT health.invalid:443 HTTP/1.1\r\nHost: health.invalid\r\n\r\n"
_ASK_SNI = b"GET http://health.invalid/ HTTP/1.1\r\nHost: health.invalid\r\n\r\n"
_DENIED = b" 403 "
_NO_TLS = _AS_NOBODY + b"health\n"


class Health:
    """Looks at the parts every two seconds, and serves what it saw and the metrics."""

    def __init__(self, holder: Holder, front: Front, *, by_name: bool = True) -> None:
        """`by_name`: whether that container is there."""
        self._holder = holder
        self._front = front
        self._by_name = by_name
        self._problem = "nothing was looked at yet"
        self._written: tuple[float, bytes] | None = None
        """The metrics, and when they were written down."""
        self._runner: web.ServerRunner | None = None

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            self._problem = await self.look()
            await asyncio.sleep(_EVERY)

    async def look(self) -> str:
        """What is wrong now; empty when nothing is."""
        parts = {
            "front": await self._front.alive(),
            "names": await denies(places.NAMES_PORT, _ASK_NAMES),
            "sni": await denies(places.SNI_PORT, _ASK_SNI),
            "state": self._holder.applied,
        }
        if self._by_name:
            parts["by-name"] = await turns_away(places.BY_NAME_PORT, _NO_TLS)
        for part, fine in parts.items():
            metrics.READY.labels(part).set(fine)
        if not parts.pop("state"):
            return "the operator has not told this gateway its rules since it started"
        missing = [part for part, fine in parts.items() if not fine]
        return f"these parts do not answer: {', '.join(missing)}" if missing else ""

    async def start(self, host: str | None = None, port: int = places.HTTP_PORT) -> int:
        """Serve /healthz, /readyz and /metrics, on every address by default; returns the port.
        OSError when it is taken.
        """
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
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        match request.path:
            case "/healthz":
                return web.Response(text="ok\n")
            case "/readyz":
                status = 503 if self._problem else 200
                return web.Response(status=status, text=f"{self._problem or 'ok'}\n")
            case "/metrics":
                return self._metrics()
        return web.Response(status=404)

    def _metrics(self) -> web.Response:
        now = time.monotonic()
        if self._written is None or now - self._written[0] >= _METRICS_SECONDS:
            self._written = now, generate_latest(metrics.REGISTRY)
        return web.Response(body=self._written[1], headers={"Content-Type": CONTENT_TYPE_LATEST})


async def denies(port: int, question: bytes) -> bool:
    """Whether a squid denies what must be denied."""
    return _DENIED in (await _answer(port, question) or b"")


async def turns_away(port: int, question: bytes) -> bool:
    """Whether what asks for no name is hung up on."""
    return await _answer(port, question) == b""


async def _answer(port: int, question: bytes) -> bytes | None:
    """The first line of the answer, empty where there is none; None where nobody answers."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            reader, writer = await asyncio.open_connection(places.LOOPBACK, port)
            with contextlib.closing(writer):
                writer.write(question)
                return await reader.readline()
    except (OSError, TimeoutError, ValueError):
        return None
