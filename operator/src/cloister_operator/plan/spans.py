"""Ranges of addresses as first and last numbers: for thousands of them, objects are too slow."""

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_BITS = {4: ipaddress.IPV4LENGTH, 6: ipaddress.IPV6LENGTH}


def collapse(found: Iterable[Network]) -> list[Network]:
    """The same ranges as the fewest, in order: IPv4 before IPv6.

    As `ipaddress.collapse_addresses` does it, in a fraction of its time.
    """
    every = set(found)
    return [
        each
        for version in _BITS
        for first, last in _joined(one for one in every if one.version == version)
        for each in _between(first, last, version)
    ]


class Union:
    """All addresses of some ranges together."""

    def __init__(self, found: Iterable[Network]) -> None:
        every = list(found)
        self._lasts: dict[int, list[int]] = {}
        self._firsts: dict[int, list[int]] = {}
        for version in _BITS:
            joined = list(_joined(each for each in every if each.version == version))
            self._firsts[version] = [first for first, _ in joined]
            self._lasts[version] = [last for _, last in joined]

    def holds(self, given: Network) -> bool:
        """Whether every address of a range is among them."""
        first, last = _ends(given)
        at = bisect_right(self._firsts[given.version], first) - 1
        return at >= 0 and last <= self._lasts[given.version][at]


def _ends(given: Network) -> tuple[int, int]:
    first = int(given.network_address)
    return first, first + (1 << (given.max_prefixlen - given.prefixlen)) - 1


def _joined(family: Iterable[Network]) -> Iterator[tuple[int, int]]:
    """First and last addresses of one family's ranges, those that meet as one, in order."""
    ends = sorted(map(_ends, family))
    if not ends:
        return
    first, last = ends[0]
    for start, end in ends:
        if start > last + 1:
            yield first, last
            first = start
        last = max(last, end)
    yield first, last


def _between(first: int, last: int, version: int) -> Iterator[Network]:
    bits = _BITS[version]
    while first <= last:
        # The largest that begins there, and does not go too far.
        aligned = (first & -first).bit_length() - 1 if first else bits
        size = min(aligned, (last - first + 1).bit_length() - 1)
        length = bits - size
        if version == 4:
            yield ipaddress.IPv4Network((first, length))
        else:
            yield ipaddress.IPv6Network((first, length))
        first += 1 << size
