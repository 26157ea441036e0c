"""Requests that two readers may read in two ways: nothing of them is led elsewhere."""

import re
import socket
import struct

import pytest

from support.gateway_addresses import GATEWAY, SERVER
from support.gateway_world import World

POD, NO_HOSTS = "10.90.0.11", "10.90.0.12"
EVIL = "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"
ASK = "CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\n\r\n"


def v2(source: str) -> str:
    """The PROXY protocol's second version: a connection of somebody else's."""
    addresses = socket.inet_aton(source) + socket.inet_aton(GATEWAY) + struct.pack("!HH", 999, 3128)
    head = b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11" + struct.pack("!H", len(addresses))
    return (head + addresses).decode("latin-1")


@pytest.mark.parametrize(
    "head",
    [f"PROXY TCP4 {POD} {GATEWAY} 999 3128\r\n", v2(POD), v2("127.0.0.1"), "PROXY UNKNOWN\r\n"],
    ids=["first version", "second version", "loopback", "nobody"],
)
def test_nobody_says_that_a_connection_is_anothers(here: World, head: str) -> None:
    answer = here.client.ask(NO_HOSTS, head + ASK)
    assert answer == "" or answer.split()[1][0] == "4", answer[:200]
    assert here.internet.queries == []


@pytest.mark.parametrize(
    "header",
    [
        f"X-Forwarded-For: {POD}",
        f"X-Forwarded-For: {POD}, {POD},",
        f'X-Forwarded-For: "{POD}',
        f"Forwarded: for={POD}",
        f"X-Real-IP: {POD}",
        f"X-Forwarded-For: {'1.2.3.4, ' * 4000}{POD}",
    ],
)
def test_nobody_says_who_they_are_by_a_header(here: World, header: str) -> None:
    request = f"CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\n{header}\r\n\r\n"
    answer = here.client.ask(NO_HOSTS, request)
    assert answer.split()[1][0] == "4", answer[:200]
    assert here.internet.queries == []


@pytest.mark.parametrize(
    "headers",
    [
        *("Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        *("Content-Length: 0\r\nContent-Length: 99", "Content-Length: 0, 99"),
        *("Content-Length: +0", "Content-Length: 0x0", "Content-Length : 0", "Content-Length:\t0"),
        *("Transfer-Encoding: chunked, identity", "Transfer-Encoding: xchunked"),
        *("Transfer-Encoding:\x0bchunked", "Transfer-Encoding\r\n : chunked"),
        *("X: y\r\n Transfer-Encoding: chunked", "Connection: Transfer-Encoding\r\nTE: chunked"),
        "Expect: 100-continue\r\nContent-Length: 0",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
        "Upgrade: TLS/1.3\r\nConnection: Upgrade",
    ],
)
@pytest.mark.parametrize(
    "line", ["POST http://ok.test/", "GET http://ok.test/", "CONNECT ok.test:443"]
)
def test_no_second_request_is_hidden_in_a_first_one(here: World, headers: str, line: str) -> None:
    answer = here.client.ask(
        POD, f"{line} HTTP/1.1\r\nHost: ok.test\r\n{headers}\r\n\r\n0\r\n\r\n{EVIL}{EVIL}"
    )
    # What is no request is answered, and the next one looked at; it is decided as every other.
    statuses = re.findall(r"^HTTP/1\.1 (\d+) ", answer, re.MULTILINE)
    assert statuses[1:] in ([], ["403"]), statuses
    assert "evil.test" not in here.internet.queries
    for each in here.internet.seen:
        # The server reads one request, for the host that was asked for, and no other protocol.
        assert (each.address, each.port) == (SERVER, 80)
        assert b"evil" not in each.first
        assert not any(one.startswith((b"upgrade", b"http2-settings")) for one in each.headers)


@pytest.mark.parametrize(
    "headers",
    [
        *("Host: evil.test\r\nHost: ok.test", "Host: ok.test\r\nHost: evil.test", "Host:", "X: y"),
        *("Host: ok.test\r\n evil.test", "Host: ok.test, evil.test", "Host: evil.test:80"),
        *("Host: ok.test\r\nConnection: Host", "Connection: close, host\r\nHost: evil.test"),
        *("Host: ok.test\r\nX-Forwarded-Host: evil.test", "Host: ok.test\r\nhOsT : evil.test"),
    ],
)
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_a_server_hears_of_the_host_that_was_decided_alone(
    here: World, headers: str, version: str
) -> None:
    here.client.ask(POD, f"GET http://ok.test/ {version}\r\n{headers}\r\n\r\n")
    assert "evil.test" not in here.internet.queries
    for each in here.internet.seen:
        hosts = [one for one in each.headers if one.partition(b":")[0].strip() == b"host"]
        assert hosts == [b"host: ok.test\r\n"]


@pytest.mark.parametrize("line", ["GET http://evil.test/", "GET http://evil.test/ HTTP/0.9", "GET"])
def test_requests_of_the_oldest_kind_reach_nobody(here: World, line: str) -> None:
    answer = here.client.ask(POD, f"{line}\r\n\r\n")
    assert " 200 " not in answer
    assert here.internet.queries == []


@pytest.mark.parametrize(
    "host",
    [
        *("\uff45vil.test", "ev\u0131l.test", "evil\u3002test", "ok.test\u3002evil.test"),
        *("ok.test%2eevil.test", "ok.test%00", "ok.test\0", "ok.test\t.evil.test"),
        *("ok.test\\.evil.test", "ok.test;.evil.test", "ok_.test", "-ok.test", "xn--ok.test"),
        *("xn--\uff45vil.test", "ok\u00ad.test", "ok\u200b.test", "OK.TEST..", ".ok.test"),
    ],
)
def test_a_name_in_other_letters_is_no_name_that_is_allowed(here: World, host: str) -> None:
    raw = host.encode().decode("latin-1")
    answers = [here.client.get(POD, f"http://{raw}/")]
    made, head = here.client.tunnel(POD, f"{raw}:443")
    made.close()
    # Where a reader ends a name before what cannot be in one, that is the name which is decided.
    ended_early = host[:7].lower() == "ok.test" and host[7:8] in ("\t", ".")
    for each in (*answers, head):
        assert ended_early or " 200 " not in each
    assert set(here.internet.queries) <= {"ok.test"}
    for seen in here.internet.seen:
        assert seen.address == SERVER
        assert b"host: ok.test\r\n" in seen.headers


@pytest.mark.parametrize("part", ["names", "sni"])
@pytest.mark.parametrize("line", ["GET http://ok.test/", "CONNECT ok.test:443"])
def test_no_words_of_a_sandbox_come_into_the_log(here: World, line: str, part: str) -> None:
    """squid tells of a request that has come through itself before, with all its headers."""
    loop = f"Via: 1.1 {part}.cloister.dev (squid), 1.1 {part}.cloister.dev (squid/5.7)"
    before = here.pod.log(part)
    with here.client.connect(POD) as made:
        made.sendall(
            f"{line} HTTP/1.1\r\nHost: ok.test\r\n{loop}\r\nX: FATAL: words\r\n\r\n".encode()
        )
        assert made.recv(4096).startswith(b"HTTP/1.1 ")
    assert here.pod.log(part) == before
