"""Bytes between a caller and a session's exec server, for callers that no pod's address reaches.

What passes is TLS between the two: the operator learns how much it is, and nothing else. So a relay
gives no right that the caller's certificate does not give; its own are those for having one.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from cloister_api.sessions.v1 import sessions_pb2

from .status import InvalidFields, Unavailable

MAX_DATA: Final = 64 * 1024
"""Bytes of one message: relays share the process with those who wait for their session."""
_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_SIGNS_OF_LIFE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    # The same for what was sent and is not acknowledged.
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000),
)
"""Seconds, but for the last: a node that vanishes with its pods tells nobody."""


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to an exec server; raises Unavailable."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, limit=MAX_DATA)
    except (OSError, TimeoutError):
        raise unreachable() from None
    for option in _SIGNS_OF_LIFE:
        writer.get_extra_info("socket").setsockopt(*option)
    return reader, writer


def unreachable() -> Unavailable:
    """The error for a sandbox that nobody gets through to."""
    return Unavailable(
        "SANDBOX_UNREACHABLE", "the session's sandbox does not answer", _RETRY_SECONDS
    )


async def carry(
    first: bytes,
    requests: AsyncIterator[sessions_pb2.RelayRequest],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> AsyncGenerator[sessions_pb2.RelayResponse, None]:
    """What the exec server sends, while it gets what the caller sends; ends when either side does.

    Raises InvalidFields for a request that is too large.
    """
    up = asyncio.create_task(_up(first, requests, writer))
    down: asyncio.Task[bytes] | None = None
    try:
        yield sessions_pb2.RelayResponse()
        while True:
            down = down or asyncio.create_task(reader.read(MAX_DATA))
            both: set[asyncio.Task[Any]] = {up, down}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                up.result()
                return
            try:
                data, down = down.result(), None
            except OSError:
                return
            if not data:
                return
            yield sessions_pb2.RelayResponse(data=data)
    finally:
        for each in (up, down):
            if each is not None:
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError, InvalidFields):
                    await each
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _up(first: bytes, requests: AsyncIterator[Any], writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        if first:
            writer.write(_checked(first))
        async for each in requests:
            writer.write(_checked(each.data))
            await writer.drain()


def _checked(data: bytes) -> bytes:
    if len(data) > MAX_DATA:
        raise InvalidFields([("data", f"at most {MAX_DATA} bytes")])
    return data
