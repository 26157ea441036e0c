"""Tunnels to a session's exec server, through the operator's Sessions API.

What passes is TLS between this process and the exec server: the operator carries it unread.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from cloister_api.sessions.v1 import sessions_pb2 as pb

from ._errors import call_error, from_rpc


class RelayTunnel:
    """One relayed connection."""

    def __init__(self, call: Any) -> None:
        self._call = call

    @classmethod
    async def open(cls, call: Any, namespace: str, name: str, problem: str = "") -> "RelayTunnel":
        """Connect by a call of Relay that was just begun; raises CallError.

        problem: what the way to the Sessions API failed with last.
        """
        made = cls(call)
        try:
            await made._write(pb.RelayRequest(namespace=namespace, name=name))
            # Without data: the connection stands.
            if await call.read() is grpc.aio.EOF:
                raise call_error(grpc.StatusCode.UNAVAILABLE, "the relay ended at once")
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, problem) from None
        except BaseException:
            call.cancel()
            raise
        return made

    async def send(self, data: bytes) -> None:
        """See Tunnel."""
        try:
            await self._write(pb.RelayRequest(data=data))
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None

    async def receive(self) -> AsyncIterator[bytes | memoryview]:
        """See Tunnel."""
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                yield answer.data
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None

    async def close(self) -> None:
        """See Tunnel."""
        self._call.cancel()

    async def _write(self, request: pb.RelayRequest) -> None:
        # Of a call that has ended: why, is for who reads it to find.
        with contextlib.suppress(asyncio.InvalidStateError):
            await self._call.write(request)
