"""Which addresses are the cluster's own, and what of the internet is left without them."""

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..api.common import JSON
from . import spans
from .spans import Network

INTERNET_V4 = ipaddress.ip_network("0.0.0.0/0")
INTERNET_V6 = ipaddress.ip_network("2000::/3")
"""What is given out to the world: it leaves out loopback, IPv4 in IPv6, NAT64, link-local, private
and multicast addresses, and with them every metadata service."""
SPECIAL_V4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    # A cloud's platform service, at an address that looks public.
    "168.63.129.16/32",
)
SPECIAL_V6 = ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
"""Tunnels, which lead to IPv4 addresses, a site's own NAT (2001:1::1), and ranges for nobody."""
_SPECIAL = spans.Union(ipaddress.ip_network(each) for each in (*SPECIAL_V4, *SPECIAL_V6))

_MAPPED = 96
"""Bits before the IPv4 address in ::ffff:a.b.c.d."""
MAX_CLAIMED = 1024
"""Addresses that count because somebody wrote them into a Service."""
MAX_PUBLIC = 4096
"""Ranges on the internet; a gateway takes no more, and would keep what it held before."""


def networks(texts: Iterable[object]) -> Iterator[Network]:
    """Addresses and ranges, as far as they can be read.

    They are read as Kubernetes reads them, which may take what Python does not: 010.0.0.1 for
    10.0.0.1, and ::ffff:10.0.0.1 too; 2600:00001::1 for 2600:1::1.
    """
    for each in texts:
        if not isinstance(each, str) or not each:
            continue
        try:
            yield _plain(ipaddress.ip_network(_without_zeros(each), strict=False))
        except ValueError:
            # Something else than an address, such as the name of a load balancer.
            continue


def _without_zeros(text: str) -> str:
    address, slash, bits = text.partition("/")
    groups = (".".join(map(_number, each.split("."))) for each in address.split(":"))
    return ":".join(groups) + slash + bits


def _number(text: str) -> str:
    return text.lstrip("0") or text[:1]


def _plain(found: Network) -> Network:
    if isinstance(found, ipaddress.IPv4Network) or found.prefixlen < _MAPPED:
        return found
    mapped = found.network_address.ipv4_mapped
    return ipaddress.IPv4Network((mapped, found.prefixlen - _MAPPED)) if mapped else found


def of_node(node: JSON) -> frozenset[Network]:
    """A node's own addresses, inside and outside, and those of its pods."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    addresses = [each.get("address") for each in status.get("addresses") or []]
    return frozenset(networks([*(spec.get("podCIDRs") or []), spec.get("podCIDR"), *addresses]))


def of_service_cidr(found: JSON) -> frozenset[Network]:
    """A range from which Services get their addresses."""
    return frozenset(networks((found.get("spec") or {}).get("cidrs") or []))


def of_service(service: JSON) -> frozenset[Network]:
    """The addresses that the cluster gave a Service."""
    spec = service.get("spec") or {}
    given = [spec.get("clusterIP"), *(spec.get("clusterIPs") or []), *_balanced(service)]
    return frozenset(networks(given))


def claimed_by_service(service: JSON) -> frozenset[Network]:
    """The addresses that whoever made a Service says are its own."""
    return frozenset(networks((service.get("spec") or {}).get("externalIPs") or []))


def believed(
    claims: Mapping[str, Collection[Network]], most: int = MAX_CLAIMED
) -> frozenset[Network]:
    """Of the addresses that Services claim, by namespace, so many at most.

    Whoever may make a Service anywhere can claim any address of the world, and a policy or a
    gateway that is told of too many takes none of them. So namespaces have equal shares, and what
    one does not need is for those that need more: none takes what another one claims modestly.
    """
    found: set[Network] = set()
    waiting = sorted(claims, key=lambda each: (len(claims[each]), each))
    for at, namespace in enumerate(waiting):
        share = (most - len(found)) // (len(waiting) - at)
        mine = sorted(claims[namespace], key=lambda each: (each.version, each.network_address))
        found.update(mine[:share])
    return frozenset(found)


def of_ingress(ingress: JSON) -> frozenset[Network]:
    """The addresses of the load balancer of an Ingress."""
    return frozenset(networks(_balanced(ingress)))


def of_endpoint_slice(found: JSON) -> frozenset[Network]:
    """The addresses behind a Service; those of `kubernetes` are the API servers."""
    endpoints = found.get("endpoints") or []
    return frozenset(networks(each for one in endpoints for each in one.get("addresses") or []))


def _balanced(obj: JSON) -> list[object]:
    ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return [each.get("ip") for each in ingress]


@dataclass(frozen=True)
class Joined:
    """Ranges in the fewest words, always in the same order."""

    ranges: tuple[str, ...]
    wider: bool = False
    """Whether they hold more than was found."""


def joined(found: Iterable[Network], most: int = MAX_PUBLIC) -> Joined:
    """The same ranges in the fewest words, with no more than `most` on the internet.

    Where there are more, neighbours become one range which holds them, no larger than it takes:
    that closes addresses of others between them, and leaves none of the cluster's own open.
    """
    every = spans.collapse(found)
    public = [each for each in every if _is_public(each)]
    wider = len(public) > most
    if wider:
        merged = [each for each in every if not _is_public(each)]
        for version in (4, 6):
            mine = [each for each in public if each.version == version]
            merged += _merged(mine, most * len(mine) // len(public))
        every = spans.collapse(merged)
    return Joined(tuple(map(str, every)), wider)


def _merged(family: Sequence[Network], most: int) -> list[Network]:
    """Disjoint ranges of one family in their order, as `most` (at least one) that hold them."""
    if not family:
        return []
    bits: int = family[0].max_prefixlen
    known = [(int(each.network_address), each.prefixlen, each) for each in family]

    def block(first: int, own: int, length: int) -> tuple[int, int]:
        kept = min(own, length)
        return kept, first >> (bits - kept)

    low, high = 0, bits
    while low < high:
        middle = (low + high + 1) // 2
        if len({block(first, own, middle) for first, own, _ in known}) <= most:
            low = middle
        else:
            high = middle - 1
    groups: dict[tuple[int, int], list[Network]] = {}
    for first, own, each in known:
        groups.setdefault(block(first, own, low), []).append(each)
    return [_holding(group) for group in groups.values()]


def _holding(group: Sequence[Network]) -> Network:
    """The smallest range with all of these, which are in order."""
    first, last = group[0], group[-1]
    differ = int(first.network_address) ^ int(last.network_address)
    length = min(first.max_prefixlen - differ.bit_length(), *(each.prefixlen for each in group[:2]))
    return first.supernet(new_prefix=length) if length < first.prefixlen else first


def on_the_internet(ranges: Iterable[str]) -> tuple[str, ...]:
    """Those of them that are not special as a whole: these are closed to everybody anyhow."""
    return tuple(text for text in ranges if _is_public(ipaddress.ip_network(text)))


def internet(ranges: Iterable[str]) -> list[JSON]:
    """Peers of a NetworkPolicy: the internet without what is special, and without these ranges."""
    return [
        {"ipBlock": {"cidr": base, "except": list(excepted)}}
        for base, excepted in _internet(tuple(ranges))
    ]


@lru_cache(maxsize=4)
def _internet(ranges: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    # Asked for every namespace anew, of ranges that seldom change.
    own = [ipaddress.ip_network(each) for each in ranges]
    found = []
    for base, special in ((INTERNET_V4, SPECIAL_V4), (INTERNET_V6, SPECIAL_V6)):
        mine = [each for each in own if each.version == base.version and each.overlaps(base)]
        if spans.Union(mine).holds(base):
            continue
        reserved = [ipaddress.ip_network(each) for each in special]
        extra = [each for each in mine if not _SPECIAL.holds(each)]
        others = spans.Union(extra)
        kept = [each for each in reserved if not others.holds(each)]
        found.append((str(base), tuple(str(each) for each in [*kept, *extra])))
    return tuple(found)


def _is_public(given: Network) -> bool:
    return (given.version == 4 or given.overlaps(INTERNET_V6)) and not _SPECIAL.holds(given)
