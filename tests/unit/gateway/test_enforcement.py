"""What passes the real gateway and what does not: haproxy, both squids, helpers and agent."""

import socket
import ssl

import pytest

from support.gateway_addresses import ATTACKER, SERVER
from support.gateway_rig import until
from support.gateway_world import World

POD = "10.90.0.11"


def test_an_allowed_host_is_reached_by_tls(here: World) -> None:
    assert here.client.fetch(POD, "ok.test").endswith(b"hello\n")
    (seen,) = here.internet.seen
    assert (seen.address, seen.port, seen.server_name) == (SERVER, 443, "ok.test")


def test_an_allowed_host_is_reached_by_plain_http(here: World) -> None:
    assert here.client.get(POD, "http://ok.test/").endswith("hello\n")


def test_a_pod_with_ipv6_reaches_what_it_may(here: World) -> None:
    assert here.client.fetch("fd90::11", "ok.test").endswith(b"hello\n")
    assert here.client.status("fd90::11", "evil.test:443") == 403


def test_a_host_with_ipv6_alone_is_reached(here: World) -> None:
    assert here.client.fetch(POD, "six.wild.test").endswith(b"hello\n")


@pytest.mark.parametrize("host", ["a.wild.test", "b.a.wild.test", "A.Wild.Test"])
def test_names_below_a_wildcard_are_reached(here: World, host: str) -> None:
    assert here.client.fetch(POD, host, host.lower()).endswith(b"hello\n")


@pytest.mark.parametrize(
    "host", ["evil.test", "wild.test", "evilwild.test", "x.ok.test", "ok.test.evil.test", "okxtest"]
)
def test_a_denied_name_is_never_looked_up(here: World, host: str) -> None:
    assert here.client.status(POD, f"{host}:443") == 403
    assert " 403 " in here.client.get(POD, f"http://{host}/")
    assert here.internet.queries == []
    assert here.internet.seen == []


def test_a_denial_tells_what_to_do(here: World) -> None:
    answer = here.client.get(POD, "http://evil.test/")
    assert answer.startswith("HTTP/1.1 403 ")
    assert "evil.test is not allowed" in answer
    assert "spec.networking.allowedHosts" in answer
    assert len(answer.partition("\r\n\r\n")[2]) < 400


@pytest.mark.parametrize("source", ["10.90.0.12", "10.90.0.13", "10.90.0.60"])
def test_who_has_no_hosts_or_is_not_known_reaches_nothing(here: World, source: str) -> None:
    assert here.client.status(source, "ok.test:443") == 403
    assert " 403 " in here.client.get(source, "http://ok.test/")
    assert here.internet.queries == []


@pytest.mark.parametrize(
    "literal",
    [
        *(ATTACKER, "2539651138", "0x97650042", "0x97.0x65.0.0x42", "0227.0145.0.0102"),
        *("151.6619202", "[::ffff:151.101.0.66]", "[2a04:4e42::10]", "[::1]", "127.0.0.1", "0"),
        *("169.254.169.254", "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]", "10.66.0.5", "localhost"),
    ],
)
def test_no_address_is_reached_in_whatever_notation(here: World, literal: str) -> None:
    # Whose PTR record says that it is an allowed host gains nothing by that.
    here.internet.names["66.0.101.151.in-addr.arpa"] = ["1.1.1.1"]
    assert here.client.status(POD, f"{literal}:443") in (400, 403)
    assert here.client.get(POD, f"http://{literal}/").split()[1] in ("400", "403")
    assert here.internet.queries == []
    assert here.internet.seen == []


@pytest.mark.parametrize("port", [22, 25, 80, 53, 8443, 8081, 7444, 3129, 3141])
def test_tunnels_lead_to_443_only(here: World, port: int) -> None:
    assert here.client.status(POD, f"ok.test:{port}") == 403
    assert here.internet.seen == []


@pytest.mark.parametrize("port", [22, 443, 8443, 8081])
def test_plain_http_leads_to_80_only(here: World, port: int) -> None:
    assert " 403 " in here.client.get(POD, f"http://ok.test:{port}/")
    assert here.internet.seen == []


@pytest.mark.parametrize(
    "request_line",
    [
        "GET https://ok.test/ HTTP/1.1",
        "GET https://ok.test:80/ HTTP/1.1",
        "GET ftp://ok.test/ HTTP/1.1",
        "GET ftp://ok.test:80/ HTTP/1.1",
        "GET urn:ok.test HTTP/1.1",
        "GET cache_object://localhost/info HTTP/1.1",
        "GET http://127.0.0.1:3129/squid-internal-mgr/info HTTP/1.1",
        "GET http://names.cloister.dev/squid-internal-mgr/info HTTP/1.1",
        "GET /squid-internal-mgr/info HTTP/1.1",
        "GET / HTTP/1.1",
        "GET http://ok.test@evil.test/ HTTP/1.1",
        "GET http://evil.test#@ok.test/ HTTP/1.1",
        "GET http://ok.test%00.evil.test/ HTTP/1.1",
        "CONNECT ok.test@evil.test:443 HTTP/1.1",
        "CONNECT evil.test#ok.test:443 HTTP/1.1",
        "CONNECT ok.test HTTP/1.1",
        "CONNECT ok.test:443:22 HTTP/1.1",
        "CONNECT ok.test:0443022 HTTP/1.1",
        "CONNECT http://ok.test:443/ HTTP/1.1",
        "nonsense",
        "\x16\x03\x01\x02",
    ],
)
def test_strange_requests_reach_nobody(here: World, request_line: str) -> None:
    answer = here.client.ask(POD, f"{request_line}\r\nHost: ok.test\r\nConnection: close\r\n\r\n")
    assert answer == "" or answer.split()[1][0] in "45", answer[:200]
    assert "ok.test" in here.internet.queries or here.internet.queries == []
    assert all(each.address == SERVER and each.port == 80 for each in here.internet.seen)
    assert here.internet.seen == []


@pytest.mark.parametrize("user", ["evil.test", "evil.test:80", "evil.test\\", "evil.test%2f"])
def test_what_is_before_an_at_sign_decides_nothing(here: World, user: str) -> None:
    here.client.get(POD, f"http://{user}@ok.test/")
    here.client.get(POD, f"http://{user}@evil.test/")
    assert {each.address for each in here.internet.seen} <= {SERVER}
    assert set(here.internet.queries) <= {"ok.test"}


def test_the_host_header_is_the_urls(here: World) -> None:
    answer = here.client.ask(
        POD, "GET http://ok.test/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n"
    )
    assert "hello" in answer
    assert {each.address for each in here.internet.seen} == {SERVER}


def test_servers_learn_nothing_of_the_pod_or_the_gateway(here: World) -> None:
    here.client.get(POD, "http://ok.test/")
    (seen,) = here.internet.seen
    names = {each.partition(b":")[0] for each in seen.headers}
    assert names <= {b"host", b"connection", b"cache-control"}
    assert POD.encode() not in b"".join(seen.headers)


def test_each_request_is_a_connection_of_its_own(here: World) -> None:
    one = "GET http://ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n"
    two = "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    answer = here.client.ask(POD, one + two)
    assert answer.count("HTTP/1.1 ") == 1
    assert "Connection: close" in answer


# --- the second stage ----------------------------------------------------------------------------


def closed(here: World, host: str, server_name: str | None) -> None:
    with pytest.raises((OSError, ssl.SSLError)):
        here.client.fetch(POD, host, server_name)
    assert here.internet.seen == []


@pytest.mark.parametrize("other", ["evil.test", "a.wild.test", "xok.test", "ok.test.evil.test"])
def test_tls_to_another_name_is_closed(here: World, other: str) -> None:
    closed(here, "ok.test", other)


def test_tls_without_a_name_is_closed(here: World) -> None:
    context = ssl.create_default_context(cadata=here.authority.pem.decode())
    context.check_hostname = False
    made, head = here.client.tunnel(POD, "ok.test:443")
    assert " 200 " in head
    with pytest.raises((OSError, ssl.SSLError)), made:
        context.wrap_socket(made).recv(1)
    assert here.internet.seen == []


@pytest.mark.parametrize(
    "spoken",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\x80\x2e\x01\x00\x02" + b"\0" * 43,
        b"\0" * 600,
    ],
)
def test_no_other_protocol_passes_a_tunnel(here: World, spoken: bytes) -> None:
    made, head = here.client.tunnel(POD, "ok.test:443")
    assert " 200 " in head
    with made:
        try:
            made.sendall(spoken)
            made.shutdown(socket.SHUT_WR)
            while made.recv(4096):
                pass
        except OSError:
            pass
    assert here.internet.seen == []


def test_what_follows_a_connect_at_once_is_looked_at_too(here: World) -> None:
    made = here.client.connect(POD)
    with made:
        made.sendall(b"CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test\r\n\r\nSSH-2.0-x\r\n")
        try:
            made.shutdown(socket.SHUT_WR)
            while made.recv(4096):
                pass
        except OSError:
            pass
    assert here.internet.seen == []


# --- where names lead ----------------------------------------------------------------------------

INSIDE = ("private", "metadata", "cluster", "mapped", "nat64", "ula", "sixtofour", "teredo", "zero")


@pytest.mark.parametrize("label", [*INSIDE, "loop"])
def test_a_name_that_leads_inside_is_denied(here: World, label: str) -> None:
    host = f"{label}.wild.test"
    assert here.client.status(POD, f"{host}:443") == 403
    answer = here.client.get(POD, f"http://{host}/")
    assert " 403 " in answer
    assert "leads to no public address" in answer
    assert here.internet.seen == []


def test_a_name_that_does_not_exist_is_denied(here: World) -> None:
    assert here.client.status(POD, "nothing.wild.test:443") == 403


def test_of_a_name_that_leads_inside_too_only_the_rest_is_used(here: World) -> None:
    for _ in range(6):
        assert here.client.fetch(POD, "mixed.wild.test").endswith(b"hello\n")
    assert {each.address for each in here.internet.seen} == {SERVER}


@pytest.mark.parametrize("inside", ["10.66.0.5", "169.254.169.254", "127.0.0.1"])
def test_a_name_that_turns_inside_after_the_first_look_leads_nowhere(
    here: World, inside: str
) -> None:
    """The name server gives a public address once and an inner one after that; its TTL is 0."""
    host = f"turn-{inside.replace('.', '-')}.wild.test"
    here.internet.names[host] = lambda times: [SERVER] if times < 2 else [inside]
    made, head = here.client.tunnel(POD, f"{host}:443")
    assert " 200 " in head
    # The tunnel waits with its TLS until the first stage has looked again, and knows better.
    with made:
        until(lambda: here.client.status(POD, f"{host}:443") == 403, "squid to look again")
        try:
            with here.client.tls.wrap_socket(made, server_hostname=host) as secure:
                secure.sendall(b"GET / HTTP/1.1\r\n\r\n")
                secure.recv(100)
        except (OSError, ssl.SSLError):
            pass
    assert here.client.status(POD, f"{host}:443") == 403
    assert {each.address for each in here.internet.seen} <= {SERVER}
