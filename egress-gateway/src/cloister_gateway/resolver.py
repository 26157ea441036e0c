"""The squids' DNS server: what leads inside does not exist, and nor does what nobody may reach.

squid looks a name up once to check its addresses and, when its cache has run out, once more to
connect. Whoever runs the name's DNS could give another answer the second time; but none of the
answers that pass here leads inside. The cluster's own ranges, which change, are checked here too.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset

from . import places
from .hosts import canonical
from .ranges import Address, Ranges, plain

_MOST = {dns.rdatatype.A: 12, dns.rdatatype.AAAA: 7}
"""Addresses that fit into 512 bytes beside the longest name."""
_LIFETIME = 8.0
_CACHED = 8192
_QUESTIONS = 4096
_AT_ONCE = 2048
"""Lookups. Whoever runs the DNS of an allowed name may answer late, and must not keep others
waiting: not with one name, nor with the hundreds that an Environment may list."""
_AT_ONCE_OF_PATTERN = 64
_SHARE = 16
"""A pattern has one of so many parts of the lookups that nobody has: some are always left."""
_TTL = 1
_QUIET_SECONDS = 1.0
"""Between two lines of the log: whoever runs the DNS of an allowed name says how often there is
something to tell.
"""
log = logging.getLogger(__name__)


class Lookup(Protocol):
    """Finds the addresses of a name."""

    async def __call__(self, name: str, kind: dns.rdatatype.RdataType) -> list[Address] | None:
        """The addresses; empty for none of this kind, None when nobody answered."""


class Upstream:
    """The pod's own name servers, with a cache of what they said."""

    def __init__(self) -> None:
        self._resolver = dns.asyncresolver.Resolver()
        self._resolver.cache = dns.resolver.LRUCache(_CACHED)
        self._resolver.lifetime = _LIFETIME

    async def __call__(self, name: str, kind: dns.rdatatype.RdataType) -> list[Address] | None:
        """See Lookup."""
        try:
            # The root's dot: no search list may make another name of it.
            found = await self._resolver.resolve(f"{name}.", kind, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.YXDOMAIN):
            return []
        except (dns.exception.DNSException, OSError):
            return None
        return [plain(each.address) for each in found]


class Resolver(asyncio.DatagramProtocol):
    """Answers squid.

    `known` gives the pattern by which any policy allows a name; `ranges` what is denied now.
    """

    def __init__(
        self, known: Callable[[str], str | None], ranges: Callable[[], Ranges], lookup: Lookup
    ) -> None:
        self._known = known
        self._ranges = ranges
        self._lookup = lookup
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: Counter[str] = Counter()
        self._all_under_way = 0
        self._transport: asyncio.DatagramTransport | None = None
        self._quiet_until = 0.0
        self._lost = asyncio.Event()

    async def start(self, port: int = places.DNS_PORT) -> None:
        """Listen on loopback; OSError when that is not possible."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, local_addr=(places.LOOPBACK, port))

    def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()
        for each in self._tasks:
            each.cancel()

    def connection_made(self, transport: Any) -> None:
        """The socket is there."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        del exc
        self._lost.set()

    async def lost(self) -> None:
        """Wait until nobody is answered any more: asyncio gives a socket up without a word."""
        await self._lost.wait()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """A question, answered when its answer is known."""
        if len(self._tasks) >= _QUESTIONS:
            return  # squid asks again
        task = asyncio.get_running_loop().create_task(self._serve(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, data: bytes, addr: Any) -> None:
        answer = await self.answer(data)
        if answer and self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(answer, addr)

    async def answer(self, data: bytes) -> bytes:
        """The answer to one question; empty for what is none."""
        try:
            query = dns.message.from_wire(data)
            response = dns.message.make_response(query, recursion_available=True)
        except (dns.exception.DNSException, ValueError):
            return b""
        if len(query.question) != 1:
            response.set_rcode(dns.rcode.FORMERR)
            return response.to_wire()
        (question,) = query.question
        name = canonical(question.name.to_text())
        pattern = self._known(name) if name is not None else None
        if question.rdclass != dns.rdataclass.IN or name is None or pattern is None:
            response.set_rcode(dns.rcode.REFUSED)
        elif question.rdtype in _MOST and (question.rdtype == dns.rdatatype.A or _has_ipv6()):
            found = await self._bounded(pattern, name, question.rdtype)
            if found is None:
                response.set_rcode(dns.rcode.SERVFAIL)
            ranges = self._ranges()
            texts = [str(each) for each in found or () if ranges.public(each)]
            if texts:
                most = texts[: _MOST[question.rdtype]]
                response.answer.append(
                    dns.rrset.from_text(question.name, _TTL, "IN", question.rdtype, *most)
                )
            elif found:
                self._tell(name)
        return response.to_wire()

    def _tell(self, name: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            log.info("a name that is allowed leads to no public address: %s", name)

    async def _bounded(
        self, pattern: str, name: str, kind: dns.rdatatype.RdataType
    ) -> list[Address] | None:
        share = (_AT_ONCE - self._all_under_way) // _SHARE
        if self._under_way[pattern] >= max(1, min(_AT_ONCE_OF_PATTERN, share)):
            return None
        self._under_way[pattern] += 1
        self._all_under_way += 1
        try:
            return await self._lookup(name, kind)
        finally:
            self._all_under_way -= 1
            self._under_way[pattern] -= 1
            if not self._under_way[pattern]:
                del self._under_way[pattern]


def _has_ipv6() -> bool:
    """Whether this pod has a way to IPv6 addresses; nothing is sent to find out."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2000::1", 443))
    except OSError:
        return False
    return True
