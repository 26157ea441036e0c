"""How a shell is told what to run, and tells how that ended: two sockets.

No pipes: the event loop uses our ends, and whoever has a pipe open can hold up all others that do
(see inlet). Tools can send on bash's ends what bash can. To be sent descriptors would be as bad
as a pipe: who throws one away waits as long as its last owner would, for a connection that lingers,
say.
"""

import array
import asyncio
import contextlib
import fcntl
import socket
import termios
from collections.abc import Callable

from .hands import Hands

_ONCE = 8192
"""Bytes that are heard at once; a report is far shorter."""


class Wire:
    """Our ends, which do not block. Used on the event loop only."""

    def __init__(self) -> None:
        """Make the sockets; raises OSError, and has none then."""
        with contextlib.ExitStack() as made:

            def pair() -> tuple[socket.socket, socket.socket]:
                both = socket.socketpair()
                for each in both:
                    made.enter_context(each)
                both[0].setblocking(False)
                return both

            self._telling, self.stdin = pair()
            self._hearing, self.status = pair()
            """bash's ends; whoever starts it closes them here."""
            # Nobody asks what comes from there.
            self._telling.shutdown(socket.SHUT_RD)
            # Else what a tool sends out of band is told of for ever, and found by no look.
            self._hearing.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            made.pop_all()

    def tell(self, text: str) -> bool:
        """Send to bash; whether that was sent, as a whole: a socket takes far more than is told."""
        try:
            return self._telling.send(text.encode()) > 0
        except OSError:
            return False

    @property
    def unread(self) -> bool:
        """Whether bash has not taken all that it was told; so, too, when nobody can say."""
        count = array.array("i", [1])
        with contextlib.suppress(OSError, ValueError):
            fcntl.ioctl(self._telling.fileno(), termios.TIOCOUTQ, count)
        return count[0] > 0

    def listen(self, hear: Callable[[], None]) -> None:
        """Call this whenever there is something to hear; raises OSError where that cannot be."""
        asyncio.get_running_loop().add_reader(self._hearing, hear)

    def hear(self) -> bytes | None:
        """What was said since, None for nothing.

        Empty when nobody has its other end any more, or a tool sent more than bytes. Nothing is
        heard after that, and bash finds nothing more to read.
        """
        try:
            # First a look, which throws nothing away.
            said, _, flags, _ = self._hearing.recvmsg(_ONCE, 0, socket.MSG_PEEK)
            if said and not flags & socket.MSG_CTRUNC:
                return self._hearing.recv(len(said))
        except BlockingIOError:
            return None
        self._unlisten()
        self._telling.close()
        return b""

    def close(self, hands: Hands) -> None:
        """Let go of both."""
        self._unlisten()
        self._telling.close()
        hands.let_go(self._hearing.detach())

    def _unlisten(self) -> None:
        asyncio.get_running_loop().remove_reader(self._hearing)
