"""Whether the pod's processes answer, asked as a sandbox would ask; served for the kubelet."""

import asyncio
import contextlib

from cloister_api.pages import Pages

from . import metrics, places
from .front import Front
from .service import Holder

_EVERY = 2.0
_TIMEOUT = 5.0
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
        # That it answers is all that /healthz says.
        pages = {"/healthz": lambda: "", "/readyz": lambda: self._problem}
        self._pages = Pages(pages, metrics.REGISTRY)

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
        return await self._pages.start(host, port)

    async def stop(self) -> None:
        """Serve no more."""
        await self._pages.stop()


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
