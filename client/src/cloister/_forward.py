"""Local ports that lead to a pod's port, through the Kubernetes API.

Each TCP connection gets a WebSocket of its own: a byte stream, whose messages begin with a byte
that says which channel they belong to. Channel 0 carries data, channel 1 errors, and the first
message of each names the port. The protocol cannot close one direction only: an end on either
side ends both, after what was received has been handed on. gRPC needs no more.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import aiohttp

from ._errors import CloisterError
from ._kube import Kube

_DATA, _ERROR = 0, 1
_READ_BYTES = 128 * 1024
_CONNECT_SECONDS = 15.0


class Forward:
    """Listens on a loopback port and bridges every connection to a pod.

    pod: asked for the pod's name at every connection, so that a replaced pod is found again.
    """

    def __init__(
        self, kube: Kube, namespace: str, pod: Callable[[], Awaitable[str]], port: int
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._pod = pod
        self._port = port
        self._server: asyncio.Server | None = None
        self._bridges: set[asyncio.Task[None]] = set()
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
        if self._server is not None:
            self._server.close()
        for each in self._bridges:
            each.cancel()
        await asyncio.gather(*self._bridges, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        pod = ""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                pod = await self._pod()
                socket = await self._kube.port_forward(self._namespace, pod, self._port)
        except CloisterError as error:
            self.problem = str(error)
            return
        except TimeoutError:
            self.problem = f"no connection to pod {self._namespace}/{pod} was made in time"
            return
        self.problem = ""
        directions = {
            asyncio.create_task(_to_pod(reader, socket)),
            asyncio.create_task(self._from_pod(socket, writer, pod)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in directions:
                each.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                await socket.close()

    async def _from_pod(
        self, socket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter, pod: str
    ) -> None:
        announced: set[int] = set()
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel = message.data[0]
            if channel not in announced:
                announced.add(channel)
            elif channel == _DATA:
                writer.write(memoryview(message.data)[1:])
                await writer.drain()
            elif channel == _ERROR:
                text = message.data[1:].decode(errors="replace").strip()
                self.problem = f"the connection to pod {self._namespace}/{pod} failed: {text}"
                return


async def _to_pod(reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    while data := await reader.read(_READ_BYTES):
        await socket.send_bytes(bytes((_DATA,)) + data)
