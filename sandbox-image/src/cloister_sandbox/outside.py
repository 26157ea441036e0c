"""A port that is reached from outside the pod alone: the kernel drops what tools send there.

Whoever has all connections that the server takes is heard instead of its worker and the operator,
and neither of them is ever in the pod. What comes from there comes over the loopback interface,
whatever addresses it names. So the listening socket has a filter of packets, which the sockets of
the connections that it accepts inherit; what it drops costs the server nothing.

The server's own connections (see handover) come that way as well. They are known by where they come
from: an address and a port that are bound before the filter names them, so that no tool can have
both, too.
"""

import contextlib
import ctypes
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterator

from .sockets import internet_sockets

_ATTACH_FILTER = 26
"""SO_ATTACH_FILTER; Linux counts so on every machine that the server runs on."""
_INTERFACE = 0xFFFF_F000 + 8
"""Where a filter finds the number of the interface (SKF_AD_IFINDEX of linux/filter.h)."""
_IP_HEADER = 0xFFF0_0000
"""SKF_NET_OFF; what is not an offset from there begins at the header of TCP, with the ports."""
_SOURCE = 12
"""Where a header of IPv4 has the address that a packet comes from. In one of IPv6 there is a part
of that address, which is none of ours."""
_WORD, _HALF, _EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
_WHOLE, _DROPPED = 0xFFFF_FFFF, 0
_EVERY = ("0.0.0.0", "[::]")  # noqa: S104 - what a server listens on that is to be reached so
_OURS = "127.0.0.1"
log = logging.getLogger(__name__)


class Outside:
    """The port of a server that listens on every address; another one's is left as it is."""

    def __init__(self) -> None:
        self._port = 0
        self._listening: list[socket.socket] = []
        self._own: set[int] = set()
        """Ports that the server's own connections come from."""

    def close(self, listen: str, port: int) -> None:
        """From now on nobody in the pod reaches the port, on which this process listens already.

        Where the kernel takes no such filter from a process without privileges, it stays as it is.
        """
        if listen.rpartition(":")[0] not in _EVERY:
            return
        try:
            self._port, self._listening = port, _listening(port)
            self._attach()
        except OSError:
            self.release()
        if not self._listening:
            log.warning("this server may drop no packets: tools can take all its connections")

    @contextlib.contextmanager
    def way_in(self) -> Iterator[tuple[socket.socket, tuple[str, int]] | None]:
        """A socket, and what it may be connected to meanwhile; None where every socket may be.

        Once the port has answered it, the connection goes on. Raises OSError.
        """
        if not self._listening:
            yield None
            return
        made = socket.socket()
        try:
            made.setblocking(False)
            made.bind((_OURS, 0))
            port = made.getsockname()[1]
            self._own.add(port)
            try:
                self._attach()
                yield made, (_OURS, self._port)
            finally:
                # Before somebody else can have it.
                self._own.discard(port)
                self._attach()
        except BaseException:
            made.close()
            raise

    def release(self) -> None:
        """Let go of the listening socket, which whoever listens may close then."""
        for each in self._listening:
            each.close()
        self._listening = []

    def _attach(self) -> None:
        made = _program(socket.if_nametoindex("lo"), sorted(self._own))
        kept = ctypes.create_string_buffer(made, len(made))
        whole = struct.pack("@HP", len(made) // 8, ctypes.addressof(kept))
        for each in self._listening:
            each.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, whole)


def _listening(port: int) -> list[socket.socket]:
    """This process's sockets that listen on a port: gRPC does not tell them. Raises OSError."""
    found = []
    for each in internet_sockets():
        with contextlib.suppress(OSError):
            listens = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listens and each.getsockname()[1] == port:
                found.append(each.dup())
    return found


def _program(loopback: int, own: list[int]) -> bytes:
    """The filter, for a loopback interface of this number (see packet filters in socket(7))."""
    steps = [
        (_WORD, 0, 0, _INTERFACE),
        (_EQUAL, 0, len(own) + 4, loopback),  # or to the last step
        (_WORD, 0, 0, _IP_HEADER + _SOURCE),
        (_EQUAL, 0, len(own) + 1, int(ipaddress.IPv4Address(_OURS))),  # or to the last but one
        (_HALF, 0, 0, 0),
        *((_EQUAL, len(own) - at, 0, port) for at, port in enumerate(own)),
        (_RETURN, 0, 0, _DROPPED),
        (_RETURN, 0, 0, _WHOLE),
    ]
    return b"".join(struct.pack("@HBBI", *each) for each in steps)


OUTSIDE = Outside()
