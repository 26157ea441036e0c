"""Addresses that no sandbox reaches through the gateway, whatever name leads to them."""

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

DENIED_IPV4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # carriers' and clouds' own, metadata services among them
    "127.0.0.0/8",
    "168.63.129.16/32",  # a cloud's metadata service under a public-looking address
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
)
REACHABLE_IPV6 = "2000::/3"
"""All else is local, private, multicast, or holds an IPv4 address (::ffff:0:0/96, 64:ff9b::/96)."""
DENIED_IPV6 = (
    "2001::/23",  # for protocols: Teredo, which holds an IPv4 address, and a site's own NAT
    "2001:db8::/32",
    "2002::/16",  # 6to4, which holds one too
    "3fff::/20",
)
_V4 = tuple(ipaddress.IPv4Network(each) for each in DENIED_IPV4)
_V6 = tuple(ipaddress.IPv6Network(each) for each in DENIED_IPV6)
_GLOBAL = ipaddress.IPv6Network(REACHABLE_IPV6)


def beyond_v6() -> tuple[str, ...]:
    """All of IPv6 outside REACHABLE_IPV6 as networks, but for ::ffff:0:0/96.

    To squid an IPv4 address is one of ::ffff:0:0/96: a network that holds them would hold all.
    """
    left = [ipaddress.IPv6Network("::/0")]
    for hole in (_GLOBAL, ipaddress.IPv6Network("::ffff:0:0/96")):
        left = [
            part
            for each in left
            for part in (each.address_exclude(hole) if hole.subnet_of(each) else (each,))
        ]
    return tuple(str(each) for each in sorted(left))


class Ranges:
    """The ranges that are denied always, and those of this cluster.

    Kept as numbers in their order: thousands are asked about thousands, and each address that
    anybody is led to, while nothing else is answered.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        """`more`: CIDRs; ValueError for what is none."""
        networks = [*_V4, *_V6, *(ipaddress.ip_network(each, strict=False) for each in more)]
        self._firsts: dict[int, list[int]] = {4: [], 6: []}
        self._lasts: dict[int, list[int]] = {4: [], 6: []}
        for version, first, last in sorted(map(_ends, networks)):
            firsts, lasts = self._firsts[version], self._lasts[version]
            if lasts and first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], last)
            else:
                firsts.append(first)
                lasts.append(last)

    def covers(self, text: str) -> bool:
        """Whether all of a range is denied already; False in doubt."""
        given = ipaddress.ip_network(text, strict=False)
        if isinstance(given, ipaddress.IPv6Network) and not given.overlaps(_GLOBAL):
            return True
        return self._hold(*_ends(given))

    def public(self, address: Address) -> bool:
        """Whether a sandbox may reach the address."""
        if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL:
            return False
        return not self._hold(address.version, int(address), int(address))

    def _hold(self, version: int, first: int, last: int) -> bool:
        at = bisect_right(self._firsts[version], first) - 1
        return at >= 0 and last <= self._lasts[version][at]


def _ends(given: Network) -> tuple[int, int, int]:
    first = int(given.network_address)
    size: int = 1 << (given.max_prefixlen - given.prefixlen)
    return given.version, first, first + size - 1


def plain(text: str) -> Address:
    """An address; one of IPv4 in IPv6's clothes (::ffff:a.b.c.d) as what it is. ValueError."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
