"""Short answers that leave at once, also where accepted connections would hold them back.

gRPC turns Nagle's algorithm off on its listening sockets alone. Linux hands that on to the
connections they accept; gVisor does not, and there a short answer would wait for the 40 ms after
which the client's kernel acknowledges the piece before it.
"""

import contextlib
import socket

from .sockets import internet_sockets

_REMEMBERED = 1024


def inherited() -> bool:
    """Whether this kernel hands TCP_NODELAY on from a listening socket to what it accepts."""
    with contextlib.suppress(OSError), socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        # Not by create_connection, which loads what international names need: see Server.start.
        with socket.socket() as connecting:
            connecting.connect(listener.getsockname())
            with listener.accept()[0] as accepted:
                return bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return False


class Connections:
    """Sets the option on connections, at the first call that each brings."""

    def __init__(self) -> None:
        self.needed = not inherited()
        """Whether there is anything to do here."""
        self._seen: set[str] = set()

    def look(self, peer: str) -> None:
        """See to the connection of a peer, as gRPC names it. gRPC does not tell the descriptor."""
        if peer in self._seen:
            return
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen.add(peer)
        for each in internet_sockets():
            with contextlib.suppress(OSError):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
