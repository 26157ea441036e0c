"""Names, policies, addresses: the pure part of every decision."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_gateway.hosts import Hosts, canonical, is_pattern
from cloister_gateway.ranges import DENIED_IPV6, Ranges, beyond_v6, plain
from cloister_gateway.state import Decider, Reason, Source, State, losers

ADDRESSES = (
    "127.0.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "1.2.3",
    "[::1]",
    "::1",
    "[::ffff:127.0.0.1]",
    "1.2.3.4.",
    "0",
    "169.254.169.254",
    "a.1",
    "a.0x1",
)


@pytest.mark.parametrize("text", ADDRESSES)
def test_no_notation_of_an_address_is_a_name(text: str) -> None:
    assert canonical(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "-", "a", "localhost", "a..b", ".a.b", "-a.b", "a-.b", "a b.c", "a_b.c", "a.b-"),
        *("a\n.b", "ok.test@evil.test", "ok.test#", "ok.test:443", "*.a.b", "é.test", "a%00.b"),
        *("a" * 64 + ".b", ".".join(["a" * 60] * 5), "ok.test..", "ok\u0000.test", "\u212a.test"),
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert canonical(text) is None


def test_names_are_compared_in_lower_case_without_the_last_dot() -> None:
    assert canonical("Ok.TEST.") == "ok.test"


def test_patterns_need_two_labels() -> None:
    assert is_pattern("*.a.test")
    assert is_pattern("a.test")
    for wrong in ("*.test", "*", "*.", "*.*.a.test", "a.*.test", "A.test", "a.test.", "*a.test"):
        assert not is_pattern(wrong), wrong


def test_wildcards_match_below_and_on_label_boundaries_only() -> None:
    hosts = Hosts(["*.a.test", "b.test"])
    assert "x.a.test" in hosts
    assert "x.y.a.test" in hosts
    assert "b.test" in hosts
    for other in ("a.test", "xa.test", "x.b.test", "x.a.test.evil.test", "test"):
        assert other not in hosts, other


@given(st.text())
def test_a_name_is_made_of_what_a_name_is_made_of(text: str) -> None:
    name = canonical(text)
    if name is not None:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
        assert canonical(name) == name
        with pytest.raises(ValueError, match="does not appear to be"):
            ipaddress.ip_address(name)


@pytest.mark.parametrize(
    "text",
    [
        *("10.0.0.1", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.1.1", "100.64.0.1"),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "255.255.255.255"),
        *("224.0.0.1", "198.18.0.1", "::1", "::", "fe80::1", "fd00:ec2::254", "fd20:ce::254"),
        *("ff02::1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:a9fe:a9fe::1", "2001::1"),
        *("2001:1::1", "2001:2::1", "2001:10::1"),
        *("::ffff:8.8.8.8", "::8.8.8.8", "3fff::1", "2001:db8::1", "4000::1", "::ffff:0:10.0.0.1"),
    ],
)
def test_what_lies_inside(text: str) -> None:
    assert not Ranges().public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["8.8.8.8", "151.101.0.10", "2a04:4e42::1", "2606:4700::1"])
def test_what_lies_outside(text: str) -> None:
    assert Ranges().public(ipaddress.ip_address(text))
    assert not Ranges([f"{text}/24" if "." in text else f"{text}/48"]).public(
        ipaddress.ip_address(text)
    )


def test_a_mapped_address_is_the_one_it_maps() -> None:
    assert str(plain("::ffff:10.0.0.1")) == "10.0.0.1"


@given(st.integers(0, 2**128 - 1))
def test_squids_list_of_ipv6_says_what_ours_says(number: int) -> None:
    address = ipaddress.IPv6Address(number)
    networks = [ipaddress.IPv6Network(each) for each in (*beyond_v6(), *DENIED_IPV6)]
    mapped = address.ipv4_mapped is not None
    assert any(address in each for each in networks) == (
        not mapped and not Ranges().public(address)
    )


def state(**sources: str) -> State:
    return State(
        1,
        1,
        {"p": ("ok.test",), "more": ("ok.test", "*.a.test")},
        {f"10.0.0.{key[1:]}": Source(*each.split()) for key, each in sources.items()},
    )


@pytest.mark.parametrize(
    ("address", "method", "host", "port", "reason"),
    [
        ("10.0.0.1", "CONNECT", "ok.test", "443", Reason.ALLOWED),
        ("::ffff:10.0.0.1", "CONNECT", "OK.test.", "443", Reason.ALLOWED),
        ("10.0.0.1", "GET", "ok.test", "80", Reason.ALLOWED),
        ("10.0.0.1", "GET", "ok.test", "443", Reason.PORT_NOT_ALLOWED),
        ("10.0.0.1", "CONNECT", "ok.test", "80", Reason.PORT_NOT_ALLOWED),
        ("10.0.0.1", "CONNECT", "ok.test", "0443", Reason.ALLOWED),
        ("10.0.0.1", "CONNECT", "ok.test", "٤٤٣", Reason.PORT_NOT_ALLOWED),
        ("10.0.0.1", "CONNECT", "a.ok.test", "443", Reason.HOST_NOT_ALLOWED),
        ("10.0.0.1", "CONNECT", "8.8.8.8", "443", Reason.NOT_A_NAME),
        ("10.0.0.2", "CONNECT", "ok.test", "443", Reason.UNKNOWN_SOURCE),
        ("", "CONNECT", "ok.test", "443", Reason.UNKNOWN_SOURCE),
        ("-", "-", "-", "-", Reason.UNKNOWN_SOURCE),
    ],
)
def test_decisions(address: str, method: str, host: str, port: str, reason: Reason) -> None:
    assert Decider(state(_1="p uid")).decide(address, method, host, port).reason is reason


def test_without_a_state_everything_is_denied() -> None:
    assert Decider(None).decide("10.0.0.1", "CONNECT", "ok.test", "443").reason is Reason.NO_STATE


def test_who_loses_something_is_cut_and_nobody_else() -> None:
    before = state(_1="p a", _2="more a", _3="p a", _4="p a", _5="p a")
    after = state(_1="p a", _2="p a", _3="p b", _5="more a")
    assert losers(before, after) == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}


def test_a_state_survives_its_file() -> None:
    written = state(_1="p a", _2="more b")
    assert State.decode(written.encode()) == written


@given(st.binary())
def test_garbage_is_no_state(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        State.decode(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b"{}",
        b'{"format": 2}',
        b"null",
        b"[" * 100_000,
        state(_1="p a").encode().replace(b'"p"', b'"q"', 1),
        state(_1="p a").encode().replace(b'"term": 1', b'"term": -1'),
        state(_1="p a").encode()[:-1],
    ],
)
def test_what_is_almost_a_state_is_none(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        State.decode(raw)
