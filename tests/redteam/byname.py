"""Attacks on the gateway's port for tools that know of no proxy, which speak TLS to it at once."""

import base64
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redteam.attacks import Attack
from redteam.direct import EXFIL, METADATA, PRIVATE, tcp, tls
from redteam.proxied import SSH, harmless
from redteam.targets import Targets
from support.client_hello import hello
from support.fake_internet_names import (
    ALLOWED,
    ATTACKER,
    BESIDE,
    CDN,
    EVIL,
    OTHERS,
    WILD,
    leading_to,
)

JSON = dict[str, Any]
PORT = 443


def said(send: bytes) -> Callable[[str], JSON]:
    """A connection over which this is said, and nothing may be heard."""
    encoded = "base64:" + base64.b64encode(send).decode()
    return lambda address: {"kind": "talk", "host": address, "port": PORT, "send": encoded}


def named(name: str) -> Callable[[str], JSON]:
    """A site by its name in TLS; "" is none."""
    return lambda address: tls(address, name)


def _everywhere(attempts: Sequence[Callable[[str], JSON]]) -> Callable[[Targets], list[JSON]]:
    """By the Service and straight at each gateway."""
    return lambda t: [each(at) for at in (t.gateway, *t.gateways) for each in attempts]


def _row(name: str, control: list[JSON], *attempts: Callable[[str], JSON]) -> Attack:
    return Attack(f"by-name-{name}", _everywhere(attempts), lambda _: control, harmless=harmless)


def _rows() -> Iterator[Attack]:
    evil = [tls(ATTACKER, EVIL), tls(CDN, BESIDE)]
    near = (f"x.{ALLOWED}", WILD, f"not{WILD}", f"{ALLOWED}.{EVIL}", "localhost", "com")
    yield _row("denied", evil, *(named(each) for each in (EVIL, BESIDE, OTHERS, EXFIL, *near)))
    yield _row("no-name", [tls(CDN, "")], named(""), said(hello()), said(hello((0, ""))))
    odd = (
        f" {ALLOWED}", f"{ALLOWED}\n", f"{ALLOWED}\x00.{EVIL}", f"{ALLOWED}\x00",
        f"{EVIL}#{ALLOWED}",
        f"{ALLOWED}:443", f"{EVIL}:443 HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n", f"{ALLOWED}@{EVIL}",
        ATTACKER, CDN, "169.254.169.254", "[::1]", f"{EVIL}%2e", f"*.{WILD}", "x" * 300,
    )  # fmt: skip
    yield _row("odd-names", evil, *(said(hello((0, each))) for each in odd))
    several = (
        [(0, ALLOWED), (0, BESIDE)], [(0, BESIDE), (0, ALLOWED)], [(1, ALLOWED), (0, BESIDE)],
    )  # fmt: skip
    yield _row(
        "several-names",
        evil,
        *(said(hello(*each)) for each in several),
        said(hello((0, ALLOWED), again=(0, BESIDE))),
        said(hello((0, BESIDE), again=(0, ALLOWED))),
    )
    yield _row(
        "other-protocols",
        [{**tcp(CDN, 443), "kind": "talk", "send": SSH}],
        *(said(each) for each in (
            SSH.encode(), f"GET / HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n".encode(),
            f"GET http://{EVIL}/ HTTP/1.1\r\nHost: {EVIL}\r\n\r\n".encode(),
            f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: {EVIL}\r\n\r\n".encode(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"a" * 400, b"\0" * 900,
        )),
    )  # fmt: skip
    inside = (*METADATA.values(), *PRIVATE)
    yield _row(
        "leads-inside",
        [tcp(each, 80) for each in inside],
        *(named(leading_to(each)) for each in inside),
    )
    yield Attack("by-name-posing", _posing, lambda _: [tls(CDN, OTHERS)], harmless=harmless)
    yield Attack(
        "by-name-into-the-cluster",
        lambda t: [
            tls(t.gateway, leading_to(each))
            for each in (t.api, t.node, t.operator, t.bystander, t.service, t.victim, *t.gateways)
        ],
        lambda t: [tcp(t.api, 443), tcp(t.bystander, 8000)],
        harmless=harmless,
    )


def _posing(targets: Targets) -> list[JSON]:
    """As a sandbox that may reach OTHERS, by both forms of the head that is used inside."""
    victim, to = targets.victim, targets.gateway
    pair = [bytes(int(each) for each in address.split(".")) for address in (victim, to)]
    second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", 12) + pair[0] + pair[1]
    second += struct.pack("!HH", 50000, PORT)
    first = f"PROXY TCP4 {victim} {to} 50000 {PORT}\r\n".encode()
    heads = (first, second, first * 2)
    return _everywhere([said(each + hello((0, OTHERS))) for each in heads])(targets)


BY_NAME = tuple(_rows())
