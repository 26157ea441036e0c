"""What runs inside the fake internet: `fake_internet.py` starts it in a network namespace.

python fake_internet_world.py FOLDER

Every address of the world is here: whatever TCP and UDP arrives at the interface is answered,
wherever it was sent, and everything that arrives is told in FOLDER/log.jsonl, packet by packet.
FOLDER/sites/NAME holds the files of the site NAME; FOLDER/ca.pem is who signs the certificates.
FOLDER/repositories holds git repositories, and users.json with the passwords of who may fetch them.
"""

import contextlib
import ctypes
import http.server
import ipaddress
import json
import os
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dnslib import DNSRecord

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import git_server
from support.certificates import TestAuthority
from support.fake_internet_names import GIT, answer

FRONT, DNS, REST = 1, 53, 9
LINK = "eth0"
RULES = f"""
table inet world {{
  chain arriving {{
    type nat hook prerouting priority dstnat
    iifname {LINK} tcp dport 1-65535 redirect to :{FRONT}
    iifname {LINK} udp dport 53 redirect to :{DNS}
    iifname {LINK} udp dport 1-65535 redirect to :{REST}
  }}
}}
"""
SIGN = "X-World"
"""The header of every answer over HTTP: who sees it has reached the world."""
PATIENCE = 20.0
_ORIGINAL_DESTINATION = 80
_NEIGHBOURS = range(130, 144)
"""Types of ICMPv6 that interfaces send by themselves."""
_INCOMING = (0, 1, 2)


class Log:
    """The file that says what came."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def tell(self, kind: str, **what: Any) -> None:
        line = json.dumps({"kind": kind, "at": time.time(), **what})
        with self._lock:
            self._file.write(line + "\n")


class World:
    """What the servers share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Log(folder / "log.jsonl")
        self._authority = TestAuthority()
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._lock = threading.Lock()
        (folder / "ca.pem").write_bytes(self._authority.pem)

    def context(self, name: str) -> ssl.SSLContext:
        """TLS as the site of this name, which it proves by a certificate of its own."""
        with self._lock:
            if name not in self._contexts:
                pair = self._authority.issue(dns=name)
                file = self.folder / f"site-{len(self._contexts)}.pem"
                file.write_bytes(pair.certificate + pair.private_key)
                made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                made.load_cert_chain(file)
                self._contexts[name] = made
            return self._contexts[name]


class Site(http.server.SimpleHTTPRequestHandler):
    """Any site: its files where it has some, and otherwise a line that says who answers."""

    protocol_version = "HTTP/1.1"
    world: World
    where: dict[str, Any]

    def respond(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(min(length, 1 << 20)) if length else b""
        name = (self.headers.get("Host") or "").split(":")[0]
        self.world.log.tell(
            *("http",), **self.where, host=name, method=self.command, path=self.path,
            body=sent[:200].decode(errors="replace"), headers=str(self.headers)[:2000],
        )  # fmt: skip
        url = urlsplit(self.path)
        if self.headers.get("Upgrade"):
            self._plain(101, "", {"Upgrade": "websocket", "Connection": "Upgrade"})
            self.close_connection = True
            return
        if url.path == "/redirect":
            self._plain(302, "", {"Location": parse_qs(url.query)["to"][0]})
            return
        repository = self.world.folder / "repositories" / url.path.split("/")[1]
        if name == GIT and url.path != "/" and repository.is_dir():
            self._git(sent)
            return
        root = self.world.folder / "sites" / name
        found = root / url.path.lstrip("/")
        # In a folder of its own a site has what is there and nothing else: it says 404.
        is_its_own = found.exists() or (root in found.parent.parents and found.parent.is_dir())
        if name and is_its_own and found.resolve().is_relative_to(root):
            self.directory = str(root)
            super().do_GET()
            return
        self._plain(200, f"the world: {name}\n", {})

    do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = respond  # noqa: N815 - http.server's

    def _git(self, body: bytes) -> None:
        root = self.world.folder / "repositories"
        passwords = json.loads((root / "users.json").read_text())
        if git_server.user(self.headers.get("Authorization"), passwords) is None:
            self._plain(401, "who are you?", {"WWW-Authenticate": "Basic realm=git"})
            return
        status, headers, content = git_server.answer(
            root, self.command, self.path, self.headers, body
        )
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def _plain(self, status: int, text: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if status != 101:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def end_headers(self) -> None:
        self.send_header(SIGN, "reached")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """What came is in the log of the world."""


class Front(socketserver.BaseRequestHandler):
    """A connection to any address and port."""

    world: World

    def handle(self) -> None:
        request: socket.socket = self.request
        request.settimeout(PATIENCE)
        address, port = self._meant(request)
        source, number = self.client_address[:2]
        where = {"dst": address, "port": port, "src": source, "from": number}
        with contextlib.suppress(OSError):
            first = self._first(request)
            if port == 53:
                self._name(request, where)
            elif first[:1] == b"\x16":
                self._secured(request, where)
            elif first.split(b" ")[0].isalpha() and b"HTTP/1" in first:
                self._site(request, {**where, "tls": False, "sni": None})
            else:
                self.world.log.tell("raw", **where, first=first[:200].decode("latin-1"))
                request.sendall(b"the world\r\n" + first)

    @staticmethod
    def _meant(request: socket.socket) -> tuple[str, int]:
        """Where the connection was sent to."""
        if request.family == socket.AF_INET:
            data = request.getsockopt(socket.SOL_IP, _ORIGINAL_DESTINATION, 16)
            return socket.inet_ntoa(data[4:8]), int.from_bytes(data[2:4], "big")
        data = request.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DESTINATION, 28)
        return socket.inet_ntop(socket.AF_INET6, data[8:24]), int.from_bytes(data[2:4], "big")

    @staticmethod
    def _first(request: socket.socket) -> bytes:
        """What is said first, without taking it; a silent client hears us first, as from SSH."""
        request.settimeout(1)
        try:
            return request.recv(4096, socket.MSG_PEEK)
        except TimeoutError:
            request.settimeout(PATIENCE)
            request.sendall(b"SSH-2.0-the-world\r\n")
            return request.recv(4096, socket.MSG_PEEK)
        finally:
            request.settimeout(PATIENCE)

    def _secured(self, request: socket.socket, where: dict[str, Any]) -> None:
        named: list[str | None] = []

        def chosen(held: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            named.append(name)
            held.context = self.world.context(name or "nameless.invalid")

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sni_callback = chosen
        try:
            with context.wrap_socket(request, server_side=True) as held:
                self.world.log.tell("tls", **where, sni=named[-1] if named else None)
                self._site(held, {**where, "tls": True, "sni": named[-1] if named else None})
        except ssl.SSLError as error:
            sni = named[-1] if named else None
            self.world.log.tell("tls-failed", **where, sni=sni, error=str(error))

    def _site(self, request: socket.socket, where: dict[str, Any]) -> None:
        handler = type("At", (Site,), {"world": self.world, "where": where})
        handler(request, self.client_address, self.server)

    def _name(self, request: socket.socket, where: dict[str, Any]) -> None:
        size = struct.unpack("!H", request.recv(2, socket.MSG_WAITALL))[0]
        reply = named(self.world, request.recv(size, socket.MSG_WAITALL), where["src"])
        request.sendall(struct.pack("!H", len(reply)) + reply)


class Listener(socketserver.ThreadingTCPServer):
    """Where all connections end."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


class Listener6(Listener):
    """The same over IPv6."""

    address_family = socket.AF_INET6


def named(world: World, packet: bytes, asker: str) -> bytes:
    """The answer to a DNS query, which is told."""
    query = DNSRecord.parse(packet)
    name = str(query.q.qname).rstrip(".")
    world.log.tell("dns", name=name, type=query.q.qtype, src=asker)
    return bytes(answer(query).pack())


def datagrams(world: World, family: int, port: int) -> None:
    """Answer every datagram to a port: names at that of DNS, and otherwise what was sent."""
    held = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    held.bind(("" if family == socket.AF_INET else "::", port))
    while True:
        data, sender = held.recvfrom(4096)
        with contextlib.suppress(Exception):
            reply = named(world, data, sender[0]) if port == DNS else b"the world " + data
            held.sendto(reply, sender)


def listen(world: World) -> None:
    """Tell of every packet that arrives and may begin something."""
    held = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    held.bind((LINK, 0))
    while True:
        data, (_, protocol, kind, *_rest) = held.recvfrom(65536)
        if kind in _INCOMING and protocol in (0x0800, 0x86DD):
            told = packet_of(data)
            if told:
                world.log.tell("packet", **told)


def packet_of(data: bytes) -> dict[str, Any] | None:
    """What a packet says about itself; None for what belongs to a connection already told of."""
    if data[0] >> 4 == 4:
        number, rest = data[9], data[(data[0] & 15) * 4 :]
        source, target = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    else:
        number, rest = data[6], data[40:]
        source = socket.inet_ntop(socket.AF_INET6, data[8:24])
        target = socket.inet_ntop(socket.AF_INET6, data[24:40])
        # Of an extension header: neighbours' talk, such as reports of multicast groups.
        if number == 0 or (number == 58 and rest[0] in _NEIGHBOURS):
            return None
        if ipaddress.ip_address(target).is_multicast:
            return None
    told = {"proto": number, "src": source, "dst": target, "port": 0}
    if number in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        told["port"] = int.from_bytes(rest[2:4], "big")
        told["from"] = int.from_bytes(rest[0:2], "big")
    # A segment that acknowledges or resets is of a connection whose first one was told.
    if number == socket.IPPROTO_TCP and rest[13] & 0x14:
        return None
    return told


def _ended(what: threading.ExceptHookArgs) -> None:
    """End with any of the servers: a world that does not hear would let every attack pass."""
    traceback.print_exception(what.exc_value)
    os._exit(1)


def main(folder: Path) -> None:
    """Serve until the end of who started us."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    threading.excepthook = _ended
    world = World(folder)
    for words in (
        "link set lo up",
        "rule add iif eth0 lookup 100",
        "-6 rule add iif eth0 lookup 100",
        "route add local 0.0.0.0/0 dev lo table 100",
        "-6 route add local ::/0 dev lo table 100",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
    (folder / "namespace").touch()
    while not (folder / "linked").exists():
        time.sleep(0.02)
    Front.world = world
    jobs = [
        Listener(("", FRONT), Front).serve_forever,
        Listener6(("::", FRONT), Front).serve_forever,
    ]
    threads = [threading.Thread(target=each, daemon=True) for each in jobs]
    for family in (socket.AF_INET, socket.AF_INET6):
        for port in (DNS, REST):
            threads.append(
                threading.Thread(target=datagrams, args=(world, family, port), daemon=True)
            )
    threads.append(threading.Thread(target=listen, args=(world,), daemon=True))
    for thread in threads:
        thread.start()
    (folder / "ready").touch()
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
