"""Where the connections of this pod lead to, as the kernel tells everybody in its network."""

import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path

from . import places
from .ranges import Address, Ranges, plain
from .state import HTTP, HTTPS

TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
# Established, being made, and ended by the far side alone: what may still carry something there.
_OPEN = frozenset({"01", "02", "08"})
_OURS = frozenset(
    {
        *(places.FRONT_PORT, places.DIRECT_PORT, places.NAMES_PORT, places.SNI_PORT),
        *(places.BY_NAME_PORT, places.GRPC_PORT, places.HTTP_PORT),
    }
)


def outgoing(table: str) -> Iterator[Address]:
    """The far ends of connections to servers, by the text of one of the kernel's tables."""
    for line in table.splitlines()[1:]:
        _, local, remote, state, *_ = line.split(None, 4)
        if state in _OPEN and _port(local) not in _OURS and _port(remote) in (HTTP, HTTPS):
            yield _address(remote)


def leads_inside(ranges: Ranges, tables: tuple[Path, ...] = TABLES) -> bool:
    """Whether a connection to a server leads to an address that is denied. OSError."""
    # Without IPv6 there is no second table.
    texts = (each.read_text("ascii") for each in tables if each.exists())
    # Thousands of connections lead to few addresses.
    found = {each for text in texts for each in outgoing(text)}
    return not all(map(ranges.public, found))


def _port(end: str) -> int:
    return int(end.rpartition(":")[2], 16)


def _address(end: str) -> Address:
    # Words of 32 bits, each as this machine writes a number.
    text = end.rpartition(":")[0]
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return plain(str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))))
