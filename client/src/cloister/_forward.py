"""Local ports that lead somewhere else: each TCP connection gets a tunnel of its own.

A tunnel cannot close one direction only: an end on either side ends both, after what was received
has been handed on. gRPC needs no more.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from ._errors import CloisterError

_READ_BYTES = 64 * 1024
_CONNECT_SECONDS = 15.0


class Tunnel(Protocol):
    """A byte stream; both directions raise CloisterError with what it failed of."""

    async def send(self, data: bytes) -> None:
        """Send some bytes, at most 64 KiB."""
        ...

    def receive(self) -> AsyncIterator[bytes | memoryview]:
        """What comes from the other side, until it ends."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Forward:
    """Listens on a loopback port and bridges every connection to a tunnel.

    opened: makes a tunnel, or raises CloisterError. where: for messages, what is at its other end.
    """

    def __init__(self, opened: Callable[[], Awaitable[Tunnel]], where: str) -> None:
        self._opened = opened
        self._where = where
        self._server: asyncio.Server | None = None
        self._bridges: set[asyncio.Task[None]] = set()
        self._closed = False
        self.address = ""
        """host:port of the local end, once started."""
        self.problem = ""
        """What the last connection failed with; empty when it was made."""

    async def start(self) -> str:
        """Listen; returns the local host:port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return self.address

    async def close(self) -> None:
        """Stop listening and end every connection."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for each in self._bridges:
            each.cancel()
        await asyncio.gather(*self._bridges, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            # It was accepted just before, and nobody would end it any more.
            writer.transport.abort()
            return
        task = asyncio.create_task(self._bridge(reader, writer))
        self._bridges.add(task)
        task.add_done_callback(self._bridges.discard)
        # A task that is cancelled before its first step does not come to its own `finally`.
        task.add_done_callback(lambda _: writer.close())

    async def _bridge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._carry(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                tunnel = await self._opened()
        except CloisterError as error:
            self.problem = str(error)
            return
        except TimeoutError:
            self.problem = f"no connection to {self._where} was made in time"
            return
        self.problem = ""
        directions = {
            asyncio.create_task(_outwards(reader, tunnel)),
            asyncio.create_task(_inwards(tunnel, writer)),
        }
        try:
            done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                failed = None if each.cancelled() else each.exception()
                if isinstance(failed, CloisterError):
                    self.problem = str(failed)
        finally:
            for each in directions:
                each.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            await tunnel.close()


async def _outwards(reader: asyncio.StreamReader, tunnel: Tunnel) -> None:
    while data := await reader.read(_READ_BYTES):
        await tunnel.send(data)


async def _inwards(tunnel: Tunnel, writer: asyncio.StreamWriter) -> None:
    async for data in tunnel.receive():
        writer.write(data)
        await writer.drain()
