"""Connections on which nothing moves any more, because everything on the way is full."""

import ssl

from cloister_gateway import buffers
from support.gateway_rig import until
from support.gateway_world import World

SAME = 9
"""Looks, one after the other, at which nothing has moved."""


def held(here: World) -> int:
    """Bytes of memory that the sockets of a gateway have."""
    return sum(each.received + each.queued for each in here.space.call(buffers.every))


def filled(here: World) -> int:
    """The same, once they get no more."""
    looks: list[int] = []

    def settled() -> bool:
        looks.append(held(here))
        return len(looks) >= SAME and len(set(looks[-SAME:])) == 1

    until(settled, "buffers that are full")
    return looks[-1]


def pour(made: ssl.SSLSocket) -> None:
    """Send until nothing more is taken; the socket does not block any more."""
    made.setblocking(False)
    looks = 0

    def full() -> bool:
        nonlocal looks
        try:
            while made.send(b"x" * 65_536):
                looks = 0
        except ssl.SSLWantWriteError:
            looks += 1
        return looks >= SAME

    until(full, "buffers that are full")
