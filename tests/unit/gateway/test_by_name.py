"""Clients that know of no proxy: TLS to the gateway's own port 443."""

import socket
import ssl
import struct

import pytest

from support.client_hello import hello
from support.gateway_addresses import SERVER
from support.gateway_client import read_all
from support.gateway_world import World

POD = "10.90.0.11"
OK = "ok.test"


def request(made: ssl.SSLSocket) -> bytes:
    """The answer to a request over what is open."""
    with made:
        made.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return made.recv(65536)


def turned_away(here: World, *said: bytes, source: str = POD) -> None:
    """Whether that is all hung up on without a byte in return, and reaches nobody."""
    with here.client.connect(source, 443) as made:
        try:
            for each in said:
                made.sendall(each)
            made.shutdown(socket.SHUT_WR)
            heard = read_all(made)
        except TimeoutError:
            raise
        except OSError:
            # Also ENOTCONN: it may be over before all of it is said.
            heard = b""
    assert heard == b""
    assert here.internet.seen == []


@pytest.mark.parametrize("name", [OK, "a.wild.test", "OK.Test"])
def test_an_allowed_host_is_reached(here: World, name: str) -> None:
    assert request(here.client.direct(POD, name)).endswith(b"hello\n")
    (seen,) = here.internet.seen
    assert (seen.address, seen.port, seen.server_name.lower()) == (SERVER, 443, name.lower())


def test_a_pod_with_ipv6_reaches_what_it_may(here: World) -> None:
    assert request(here.client.direct("fd90::11", OK)).endswith(b"hello\n")
    with pytest.raises((OSError, ssl.SSLError)):
        here.client.direct("fd90::11", "evil.test")


@pytest.mark.parametrize(
    "name",
    ["evil.test", "wild.test", "evilwild.test", "x.ok.test", "ok.test.evil.test", "localhost"],
)
def test_a_denied_name_is_never_looked_up(here: World, name: str) -> None:
    with pytest.raises((OSError, ssl.SSLError)):
        here.client.direct(POD, name)
    assert here.internet.queries == []
    assert here.internet.seen == []


@pytest.mark.parametrize("source", ["10.90.0.12", "10.90.0.13", "10.90.0.60"])
def test_who_has_no_hosts_or_is_not_known_reaches_nothing(here: World, source: str) -> None:
    with pytest.raises((OSError, ssl.SSLError)):
        here.client.direct(source, OK)
    assert here.internet.queries == []


@pytest.mark.parametrize("label", ["private", "metadata", "cluster", "nat64", "zero", "loop"])
def test_a_name_that_leads_inside_is_denied(here: World, label: str) -> None:
    with pytest.raises((OSError, ssl.SSLError)):
        here.client.direct(POD, f"{label}.wild.test")
    assert here.internet.seen == []


def test_tls_without_a_name_is_closed(here: World) -> None:
    with pytest.raises((OSError, ssl.SSLError)):
        here.client.direct(POD, None)
    assert here.internet.seen == []


@pytest.mark.parametrize(
    "spoken",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        b"CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        b"PROXY TCP4 10.90.0.11 10.90.0.1 1 443\r\n",
        b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11\0\x0c" + b"\x0a\x5a\0\x0b\x0a\x5a\0\1\0\1\1\xbb",
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\x00\x00" * 200,
        b"\x16\x03\x01\xff\xff" + b"\1" * 5000,
        b"\x80\x2e\x01\x00\x02" + b"\0" * 43,
        b"\0" * 600,
        b"",
    ],
)
def test_no_other_protocol_passes(here: World, spoken: bytes) -> None:
    turned_away(here, spoken)


@pytest.mark.parametrize(
    "name",
    [
        *(f" {OK}", f"{OK} ", f"{OK}\r\n", f"{OK}\n", f"{OK}:443", f"{OK}\0", f"\0{OK}", ""),
        *(f"{OK}:443 HTTP/1.1\r\nHost: {OK}\r\n\r\n", f"{OK}\0.evil.test", f"{OK}@evil.test"),
        *(f"{OK}\xe9", f"{OK}%2e", f"{OK}..", ".", "*.wild.test", "10.66.0.5", "151.101.0.10"),
        *("[::1]", "a" * 64 + ".wild.test", ".".join(["a" * 60] * 5) + ".wild.test"),
    ],
)
def test_a_name_that_is_none_is_turned_away(here: World, name: str) -> None:
    turned_away(here, hello((0, name)))
    assert here.internet.queries == []


@pytest.mark.parametrize(
    "names",
    [((0, OK), (0, "evil.test")), ((0, "evil.test"), (0, OK)), ((0, OK), (1, "x")), ((7, OK),)],
)
def test_a_first_message_with_several_names_is_turned_away(
    here: World, names: tuple[tuple[int, str], ...]
) -> None:
    turned_away(here, hello(*names))


def test_a_first_message_with_names_twice_is_turned_away(here: World) -> None:
    turned_away(here, hello((0, OK), again=(0, "evil.test")))


def test_a_first_message_in_pieces_passes(here: World) -> None:
    whole = hello((0, OK))
    with here.client.connect(POD, 443) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(whole), 40):
            made.sendall(whole[at : at + 40])
        # Nobody but the far end answers with TLS.
        assert made.recv(5)[:1] == b"\x16"


def test_a_first_message_in_several_records_passes(here: World) -> None:
    body = hello((0, OK))[5:]
    with here.client.connect(POD, 443) as made:
        for part in (body[:1], body[1:3], body[3:100], body[100:]):
            made.sendall(b"\x16\x03\x01" + struct.pack("!H", len(part)) + part)
        assert made.recv(5)[:1] == b"\x16"


def test_a_first_message_in_endless_records_is_turned_away(here: World) -> None:
    body = hello((0, OK))[5:]
    turned_away(here, b"".join(b"\x16\x03\x01\0\1" + body[at : at + 1] for at in range(len(body))))


def test_a_huge_first_message_is_turned_away(here: World) -> None:
    turned_away(here, b"\x16\x03\x01\x40\x00\x01\x00\xff\xff" + b"\0" * 100_000)
    turned_away(here, b"\x16\x03\x01\x40\x00\x01\x00\x40\x00" + b"\0" * 100_000)


def test_a_client_hears_the_end_of_what_it_asked_for(here: World) -> None:
    """Megabytes pass whole, and both ends are told that it is over."""
    with here.client.direct(POD, OK) as made:
        made.sendall(b"GET /8000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        left = 8_000_000
        with made.makefile("rb") as answer:
            while answer.readline() != b"\r\n":
                pass
            while left:
                left -= len(answer.read(min(left, 1 << 20)))
    (seen,) = here.internet.seen
    assert seen.ended.wait(10)


def test_a_client_that_does_not_read_holds_nobody_up(here: World) -> None:
    with here.client.direct(POD, OK) as slow:
        slow.sendall(b"GET /50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(5):
            assert request(here.client.direct(POD, OK)).endswith(b"hello\n")
