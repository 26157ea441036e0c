"""Trying TCP connections, by which the operator proves that the network is closed.

What a setup script left running may want it to seem so. It is no policy's work when there is no
port, descriptor or memory for the attempt, nor when this process is kept from looking until the
time is over.
"""

import asyncio
import errno
import os
import socket
from pathlib import Path

from .errors import Busy
from .wakes import wake

_OURS = (
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ENOSPC,
)
"""What the kernel answers before anything was sent."""
_CUT = (errno.ECONNRESET, errno.EPIPE)
"""What it says of a connection that was accepted, and then broken. Who refuses one is told from
that: ECONNREFUSED."""
_ADDRESSES = Path("/proc/net/if_inet6")


async def accepts(host: str, port: int, seconds: float) -> bool:
    """Whether a connection to a literal address is accepted in so many seconds.

    Raises Busy when this machine has nothing left to try it with.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trying:
            trying.setblocking(False)
            error = trying.connect_ex((host, port))
            if error == errno.EINPROGRESS:
                # The time begins when the request is on its way, and what counts at its end is what
                # the kernel knows.
                await _settled(trying, seconds)
                error = trying.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error in _CUT:
                return True
            if error:
                raise OSError(error, os.strerror(error))
            trying.getpeername()
    except OSError as error:
        if error.errno not in _OURS or _is_without_address(family, error):
            return False
        why = "the sandbox has no ports or descriptors left to try a connection with"
        raise Busy("OUT_OF_RESOURCES", why, 1.0, "processes") from None
    return True


async def _settled(trying: socket.socket, seconds: float) -> None:
    """Wait until the kernel has an answer, or the time is over; raises OSError."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(trying, wake, ready)
    try:
        await asyncio.wait([ready], timeout=seconds)
    finally:
        loop.remove_writer(trying)


def _is_without_address(family: socket.AddressFamily, error: OSError) -> bool:
    """Whether there is no address to send from, as where IPv6 is switched off."""
    if family is not socket.AF_INET6 or error.errno != errno.EADDRNOTAVAIL:
        return False
    try:
        return not _ADDRESSES.read_text().strip()
    except OSError:
        return True
