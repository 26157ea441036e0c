"""Replacing what all TLS handshakes share, without freeing it under one that has just begun.

gRPC takes a new certificate at the first handshake after it is offered, and frees what it had. A
handshake that another thread begins at that moment may then use what is freed (grpc/grpc#36693).
But a handshake under way keeps what it uses: as long as one of our own waits, nothing is freed.
"""

import asyncio
import contextlib
import os
import struct
from collections.abc import Callable

from .outside import OUTSIDE

_HELD_SECONDS = 10.0
"""How long the old certificate is kept: far longer than a handshake needs to begin, far shorter
than gRPC waits for one to end."""
_TAKEN_SECONDS = 0.05
"""After so long nobody waits for the answer of the call any more that brought the certificate."""
_ANSWER_SECONDS = 1.0
_MUCH = 65_536
_taking: set[asyncio.Task[None]] = set()


async def hand_over(listen: str, replace: Callable[[], None]) -> None:
    """Offer another certificate to the server that listens there.

    The next handshake has it, whoever begins it. If nobody does, one of our own takes it soon, and
    not before the answer to who waits for this; a server that cannot be reached has it at its next.
    """
    holding = await _begin(listen)
    try:
        replace()
    except BaseException:
        if holding is not None:
            holding.close()
        raise
    if holding is not None:
        task = asyncio.create_task(_taken(listen, holding))
        _taking.add(task)
        task.add_done_callback(_taking.discard)


async def _taken(listen: str, holding: asyncio.StreamWriter) -> None:
    """Have it taken while what was before is held."""
    try:
        await asyncio.sleep(_TAKEN_SECONDS)
        taking = await _begin(listen)
        if taking is not None:
            taking.close()
        await asyncio.sleep(_HELD_SECONDS)
    finally:
        holding.close()


async def _begin(listen: str) -> asyncio.StreamWriter | None:
    """A handshake that the server has answered and that waits for us; None when there is none."""
    host, _, port = listen.rpartition(":")
    with contextlib.suppress(OSError, TimeoutError), OUTSIDE.way_in() as way:
        async with asyncio.timeout(_ANSWER_SECONDS):
            if way is None:
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            else:
                await asyncio.get_running_loop().sock_connect(*way)
                reader, writer = await asyncio.open_connection(sock=way[0])
            try:
                writer.write(_hello())
                if await reader.read(_MUCH):
                    return writer
            except BaseException:
                writer.close()
                raise
            writer.close()
    return None


def _hello() -> bytes:
    """A ClientHello of TLS 1.2, which needs no key before the server's answer (RFC 5246, 7.4.1.2).

    Written by hand because this process has no TLS but gRPC's.
    """
    extensions = (
        _extension(10, _sized(2, struct.pack(">2H", 29, 23)))  # curves: X25519, P-256
        + _extension(11, _sized(1, b"\0"))  # points: uncompressed
        + _extension(13, _sized(2, struct.pack(">6H", 0x403, 0x503, 0x804, 0x805, 0x401, 0x501)))
        + _extension(16, _sized(2, _sized(1, b"h2")))  # protocol: HTTP/2
    )
    ciphers = struct.pack(">4H", 0xC02B, 0xC02C, 0xC02F, 0xC030)  # ECDHE with AES-GCM
    body = b"\3\3" + os.urandom(32) + b"\0" + _sized(2, ciphers) + b"\1\0" + _sized(2, extensions)
    return b"\x16\3\1" + _sized(2, b"\1" + _sized(3, body))


def _extension(number: int, content: bytes) -> bytes:
    return struct.pack(">H", number) + _sized(2, content)


def _sized(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width, "big") + content
