"""What the sockets of this pod hold of its memory, as the kernel tells everybody in its network.

The sockets of all containers are there, with what the kernel counts of them, not only what waits in
them: many small pieces take many times their bytes.
"""

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .ranges import plain
from .reports import Client

_SOCK_DIAG = 4
_BY_FAMILY, _ERROR, _DONE = 20, 2, 3
_ALL = 0x301
"""The flags of a request for everything there is."""
_MEMORY = 7
_STATES = 0xFFF & ~(1 << 6 | 1 << 10)
"""Not those that only wait for their end, or for connections: they hold nothing."""
_ANSWER = 1 << 17
_HEAD = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBBxI48x")
_ENDS = struct.Struct("!4xHH16s16s")
_ENDS_AND_MORE = 72
_ATTRIBUTE = struct.Struct("=HH")
_COUNTED = struct.Struct("=I16xI4xI")
"""What was received, what is to be sent, and what waits until the socket is free to take it."""


class Held(NamedTuple):
    """One socket."""

    port: int
    """Its own."""
    far: Client
    received: int
    """Bytes of memory of what came and was not taken yet."""
    queued: int
    """The same of what is to be sent, or was and is not acknowledged."""


def every() -> list[Held]:
    """All TCP sockets of this pod that are connected, or were; OSError."""
    found: list[Held] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as asked:
            body = _ASKED.pack(family, socket.IPPROTO_TCP, 1 << (_MEMORY - 1), _STATES)
            asked.send(_HEAD.pack(_HEAD.size + len(body), _BY_FAMILY, _ALL, 1, 0) + body)
            kind = _BY_FAMILY
            while kind == _BY_FAMILY:
                for kind, message in _messages(asked.recv(_ANSWER)):
                    if kind == _BY_FAMILY:
                        found.append(_held(message, family))
            if kind == _ERROR:
                raise OSError("the kernel does not tell what sockets hold")
    return found


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        size, kind, *_ = _HEAD.unpack_from(data)
        yield kind, data[_HEAD.size : size]
        data = data[_whole(size) :]


def _held(message: bytes, family: int) -> Held:
    port, far_port, _, far = _ENDS.unpack_from(message)
    address = socket.inet_ntop(family, far if family == socket.AF_INET6 else far[:4])
    at, received, queued, waiting = _ENDS_AND_MORE, 0, 0, 0
    while at < len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _MEMORY:
            received, queued, waiting = _COUNTED.unpack_from(message, at + _ATTRIBUTE.size)
        at += _whole(length)
    return Held(port, Client(str(plain(address)), far_port), received + waiting, queued)


def _whole(size: int) -> int:
    """A size with the padding after it."""
    return (size + 3) & ~3
