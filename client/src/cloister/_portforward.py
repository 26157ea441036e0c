"""Tunnels to a pod's port, through the Kubernetes API.

Each is a WebSocket, whose messages begin with a byte that says which channel they belong to.
Channel 0 carries data, channel 1 errors, and the first message of each names the port.
"""

import contextlib
from collections.abc import AsyncIterator

import aiohttp

from ._errors import KubernetesError
from ._kube import Kube

_DATA, _ERROR = 0, 1


class PodTunnel:
    """One forwarded connection."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, where: str) -> None:
        self._socket = socket
        self._where = where

    @classmethod
    async def open(cls, kube: Kube, namespace: str, pod: str, port: int) -> "PodTunnel":
        """Connect; raises KubernetesError."""
        socket = await kube.port_forward(namespace, pod, port)
        return cls(socket, f"pod {namespace}/{pod}")

    async def send(self, data: bytes) -> None:
        """See Tunnel."""
        await self._socket.send_bytes(bytes((_DATA,)) + data)

    async def receive(self) -> AsyncIterator[bytes | memoryview]:
        """See Tunnel."""
        announced: set[int] = set()
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel = message.data[0]
            if channel not in announced:
                announced.add(channel)
            elif channel == _DATA:
                yield memoryview(message.data)[1:]
            elif channel == _ERROR:
                text = message.data[1:].decode(errors="replace").strip()
                raise KubernetesError(f"the connection to {self._where} failed: {text}")

    async def close(self) -> None:
        """See Tunnel."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            await self._socket.close()
