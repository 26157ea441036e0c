"""The agent's resolver: which names it looks up, for whom, and what it answers."""

import asyncio
import ipaddress
import logging
from collections import Counter

import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_gateway.hosts import Hosts
from cloister_gateway.ranges import Address, Ranges
from cloister_gateway.resolver import Resolver
from support.sandbox_server import free_port


async def ask(
    found: list[str] | None, asked: str = "ok.test", of: str = "A"
) -> dns.message.Message:
    async def lookup(name: str, kind: dns.rdatatype.RdataType) -> list[Address] | None:
        return None if found is None else [ipaddress.ip_address(each) for each in found]

    resolver = Resolver(
        lambda each: each if each.endswith("ok.test") else None,
        lambda: Ranges(["151.101.7.0/24"]),
        lookup,
    )
    query = dns.message.make_query(asked, of)
    return dns.message.from_wire(await resolver.answer(query.to_wire()))


def addresses(message: dns.message.Message) -> list[str]:
    return [str(each) for rrset in message.answer for each in rrset]


async def test_public_addresses_pass_and_inner_ones_do_not() -> None:
    found = ["151.101.0.1", "10.0.0.1", "169.254.169.254", "151.101.7.1"]
    assert addresses(await ask(found)) == ["151.101.0.1"]


async def test_names_that_lead_inside_do_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def lookup(name: str, kind: dns.rdatatype.RdataType) -> list[Address]:
        return [ipaddress.ip_address("10.0.0.1")]

    resolver = Resolver(lambda each: each, Ranges, lookup)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with caplog.at_level(logging.INFO):
        for each in range(300):
            await resolver.answer(dns.message.make_query(f"a{each}.ok.test", "A").to_wire())
    assert 1 <= len(caplog.records) <= loop.time() - began + 1


async def test_names_that_nobody_may_reach_are_not_looked_up() -> None:
    for name in ("evil.test", "ok.test.evil", "1.0.0.10.in-addr.arpa", "x"):
        answer = await ask(["151.101.0.1"], name)
        assert answer.rcode() == dns.rcode.REFUSED


async def test_other_kinds_are_answered_with_nothing() -> None:
    for kind in ("TXT", "ANY", "PTR", "SVCB", "HTTPS"):
        assert addresses(await ask(["151.101.0.1"], of=kind)) == []


async def test_an_upstream_that_fails_is_told() -> None:
    assert (await ask(None)).rcode() == dns.rcode.SERVFAIL


async def test_many_addresses_fit_into_what_squid_takes() -> None:
    name = ".".join(["a" * 60] * 3) + ".ok.test"
    answer = await ask([f"151.101.0.{each}" for each in range(1, 200)], name)
    assert len(answer.to_wire()) <= 512
    assert len(addresses(answer)) == 12


async def test_a_zone_that_never_answers_keeps_no_other_waiting() -> None:
    silence = asyncio.Event()

    async def lookup(name: str, kind: dns.rdatatype.RdataType) -> list[Address] | None:
        if name.endswith(".slow.test"):
            await silence.wait()
        return [ipaddress.ip_address("151.101.0.1")]

    hosts = Hosts(["*.slow.test", "ok.test"])
    resolver = Resolver(hosts.match, Ranges, lookup)

    async def answer(name: str) -> dns.message.Message:
        wire = dns.message.make_query(name, "A").to_wire()
        return dns.message.from_wire(await resolver.answer(wire))

    waiting = [asyncio.create_task(answer(f"n{each}.slow.test")) for each in range(64)]
    await asyncio.sleep(0)
    assert (await answer("more.slow.test")).rcode() == dns.rcode.SERVFAIL
    assert addresses(await answer("ok.test")) == ["151.101.0.1"]
    silence.set()
    assert all(addresses(each) for each in await asyncio.gather(*waiting))
    assert addresses(await answer("more.slow.test")) == ["151.101.0.1"]


async def test_many_zones_that_never_answer_keep_no_other_waiting() -> None:
    silence = asyncio.Event()
    under_way: Counter[str] = Counter()

    async def lookup(name: str, kind: dns.rdatatype.RdataType) -> list[Address] | None:
        under_way["honest" if name.endswith("ok.test") else "silent"] += 1
        await silence.wait()
        return [ipaddress.ip_address("151.101.0.1")]

    zones = 256
    hosts = Hosts([*(f"*.z{each}.test" for each in range(zones)), "*.ok.test"])
    resolver = Resolver(hosts.match, Ranges, lookup)

    def asked(name: str) -> "asyncio.Task[bytes]":
        query = dns.message.make_query(name, "A").to_wire()
        return asyncio.create_task(resolver.answer(query))

    tasks = [asked(f"n{at}.z{zone}.test") for at in range(16) for zone in range(zones)]
    await asyncio.sleep(0)
    assert 0 < under_way["silent"] < 2048
    tasks += [asked(f"n{at}.ok.test") for at in range(5)]
    await asyncio.sleep(0)
    assert under_way["honest"] == 5
    silence.set()
    await asyncio.gather(*tasks)


@given(st.binary(max_size=600))
def test_garbage_is_not_answered_with_addresses(data: bytes) -> None:
    async def lookup(name: str, kind: dns.rdatatype.RdataType) -> list[Address] | None:
        raise AssertionError("looked up")

    resolver = Resolver(lambda _: None, Ranges, lookup)
    asyncio.run(resolver.answer(data))


async def test_a_socket_that_is_given_up_is_told() -> None:
    """asyncio closes one with which something unforeseen went wrong; squid would ask in vain."""
    resolver = Resolver(lambda each: each, Ranges, lambda *_: asyncio.sleep(0, []))
    await resolver.start(free_port())
    lost = asyncio.create_task(resolver.lost())
    await asyncio.sleep(0)
    assert not lost.done()
    assert resolver._transport is not None
    resolver._transport.abort()
    async with asyncio.timeout(30):
        await lost
