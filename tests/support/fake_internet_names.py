"""The names of the fake internet, and what its name server answers.

Besides the names of `SITES` there are names that say what they resolve to, such as
`a0a000001.to.example.org`: see `leading_to`.
"""

import ipaddress
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from dnslib import AAAA, PTR, QTYPE, RCODE, RR, A, DNSRecord

NODE = "45.83.64.1"
"""The node's address towards the world."""
WORLD = "45.83.64.2"
NAME_SERVER = "45.83.64.53"
CDN = "45.83.64.80"
"""Where an allowed site is beside others that are not."""
ATTACKER = "45.83.64.66"
NODE6 = "2a0f:85c0:64::1"
WORLD6 = "2a0f:85c0:64::2"
ATTACKER6 = "2a0f:85c0:64::66"

ALLOWED = "allowed.example.com"
BESIDE = "beside.example.com"
"""Another site at the address of ALLOWED."""
EVIL = "evil.example.net"
WILD = "wild.example.com"
"""Its subdomains are there."""
OTHERS = "others.example.com"
"""A site that another sandbox may reach."""
INDEX = "index.example.com"
PACKAGES = "packages.example.com"
GIT = "git.example.com"
TO = "to.example.org"
"""Names below it say which addresses they have."""

SITES = {
    ALLOWED: CDN,
    BESIDE: CDN,
    WILD: CDN,
    OTHERS: CDN,
    "example.com": CDN,
    INDEX: "45.83.64.90",
    PACKAGES: "45.83.64.91",
    GIT: "45.83.64.92",
    EVIL: ATTACKER,
}
ZONES = {WILD: CDN, EVIL: ATTACKER, ALLOWED: CDN}
"""Every name below these exists."""

_serial = itertools.count()
_asked: dict[tuple[str, str], int] = {}
_lock = threading.Lock()
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def leading_to(*addresses: str, changing: bool = False) -> str:
    """A new name that resolves to these addresses, all at once or one after the other."""
    words = []
    for each in addresses:
        found = ipaddress.ip_address(each)
        words.append(("a" if found.version == 4 else "b") + found.packed.hex())
    return "-".join(["r" if changing else "s", str(next(_serial)), *words]) + f".{TO}"


def answer(query: DNSRecord) -> DNSRecord:
    """What the name server says."""
    reply = query.reply()
    name = str(query.q.qname).rstrip(".").lower()
    kind = QTYPE[query.q.qtype]
    if kind == "PTR":
        # The attacker says of his addresses that they are the allowed site's.
        reply.add_answer(RR(query.q.qname, QTYPE.PTR, rdata=PTR(ALLOWED), ttl=1))
        return reply
    addresses = _addresses(name, kind)
    if addresses is None:
        reply.header.rcode = RCODE.NXDOMAIN
        return reply
    for each in addresses:
        if (kind, each.version) == ("A", 4):
            reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(str(each)), ttl=0))
        elif (kind, each.version) == ("AAAA", 6):
            reply.add_answer(RR(query.q.qname, QTYPE.AAAA, rdata=AAAA(str(each)), ttl=0))
    return reply


def _addresses(name: str, kind: str) -> Sequence[Address] | None:
    if name in SITES:
        return [ipaddress.ip_address(SITES[name])]
    if name.endswith(f".{TO}"):
        return list(_told(name, kind))
    for zone, address in ZONES.items():
        if name.endswith(f".{zone}"):
            return [ipaddress.ip_address(address)]
    return None


def _told(name: str, kind: str) -> Iterator[Address]:
    how, _, *words = name.removesuffix(f".{TO}").split("-")
    found = [_address(each) for each in words]
    if how == "s":
        yield from found
        return
    with _lock:
        turn = _asked.get((name, kind), 0)
        _asked[name, kind] = turn + 1
    yield found[min(turn, len(found) - 1)]


def _address(word: str) -> Any:
    return ipaddress.ip_address(bytes.fromhex(word[1:]))
