"""What tries to get out: it runs in sandboxes, on the node, and in ordinary pods.

python3 probe.py [SECONDS [THREADS]] < ATTEMPTS

Attempts come as a JSON list, and what came of them goes as one, in the same order. They are made at
once; with SECONDS again and again for so long, with THREADS each by so many. The standard library
alone, since a sandbox has nothing else. An attempt names its `kind`, which is a function here, and
its parameters. Its result has `reached` (an answer came from where none should) and `said` (what
was heard, or why nothing was).
"""

import base64
import ctypes
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

WAIT = 3.0
SIGN = b"x-world: reached"
SHOWN = 160

T = TypeVar("T")
Result = tuple[bool, str]


def tcp(host: str, port: int, send: str = "", scope: str = "", wait: float = WAIT) -> Result:
    """A connection; that it opens is enough."""
    with _connected(host, port, scope, wait) as held:
        if send:
            held.sendall(_bytes(send))
        return True, "open"


def talk(host: str, port: int, send: str = "", scope: str = "", wait: float = WAIT) -> Result:
    """A connection over which something is heard."""
    with _connected(host, port, scope, wait) as held:
        held.sendall(_bytes(send))
        heard = held.recv(400)
        return bool(heard), heard.decode("latin-1")


def udp(
    host: str,
    port: int,
    send: str = "x",
    scope: str = "",
    protocol: int = 0,
    broadcast: bool = False,
    wait: float = WAIT,
) -> Result:
    """A datagram that is answered."""
    family, address = _resolved(host, port, scope)
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as held:
        held.settimeout(wait)
        if broadcast:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        held.sendto(_bytes(send), address)
        heard, sender = held.recvfrom(4096)
        return True, f"{sender[0]}: {heard[:80].decode('latin-1')}"


def stream(host: str, port: int, protocol: int) -> Result:
    """A connection by another protocol than TCP: MPTCP is 262, SCTP 132."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as held:
        held.settimeout(WAIT)
        held.connect((host, port))
        return True, "open"


def ping(host: str) -> Result:
    """An echo over ICMP, by the socket that needs no rights, or a raw one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if ":" in host else socket.IPPROTO_ICMP
    try:
        held = socket.socket(family, socket.SOCK_DGRAM, protocol)
    except OSError:
        held = socket.socket(family, socket.SOCK_RAW, protocol)
    with held:
        held.settimeout(WAIT)
        number = 128 if ":" in host else 8
        body = struct.pack("!BBHHH", number, 0, 0, 1, 1)
        total = sum(struct.unpack("!4H", body))
        total = (total >> 16) + (total & 0xFFFF)
        body = struct.pack("!BBHHH", number, 0, ~total & 0xFFFF, 1, 1)
        held.sendto(body, (host, 0))
        held.recvfrom(1024)
        return True, "echo"


def raw(family: int, form: int, protocol: int) -> Result:
    """A socket that makes packets by itself."""
    socket.socket(family, form, protocol).close()
    return True, "made"


def option(level: int, name: int, value: int, host: str, port: int) -> Result:
    """Connect with an option that changes how packets go, such as a mark. gVisor sets them for its
    own network alone, where they change nothing.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as held:
        held.setsockopt(level, name, value)
        held.settimeout(3)
        held.connect((host, port))
        return True, "connected"


def settable(level: int, name: int) -> Result:
    """An option of a socket that alone is too much."""
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            held = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:
            continue
        with held:
            held.setsockopt(level, name, 1)
        return True, "set"
    raise OSError("no sockets")


def entered(path: str) -> Result:
    """Enter a namespace of another process, such as the node's first."""
    number = os.open(path, os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(number, 0):
        raise OSError(ctypes.get_errno(), "setns")
    return True, "entered"


def vsock(cid: int, port: int) -> Result:
    """The hypervisor, or the host of a sandboxed runtime."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as held:
        held.settimeout(WAIT)
        held.connect((cid, port))
        return True, "open"


def rings() -> Result:
    """A ring of calls (io_uring_setup), which opens sockets that no filter of calls sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 4, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    return True, "made"


def resolve(name: str) -> Result:
    """A name, as every program looks it up."""
    found = socket.getaddrinfo(name, 443)
    return True, str(found[0][4][0])


def query(server: str, name: str, port: int = 53, over: str = "udp") -> Result:
    """A name, asked of a server of one's own choice."""
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    packet = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    if over == "tcp":
        with _connected(server, port, "", WAIT) as held:
            held.sendall(struct.pack("!H", len(packet)) + packet)
            heard = held.recv(512)
            return bool(heard), "answered"
    family, address = _resolved(server, port, "")
    with socket.socket(family, socket.SOCK_DGRAM) as held:
        held.settimeout(WAIT)
        held.sendto(packet, address)
        held.recvfrom(512)
        return True, "answered"


def held(
    host: str = "", port: int = 0, proxy: str = "", send: str = "G", wait: float = 8
) -> Result:
    """A connection that is kept and says next to nothing."""
    with _proxied(proxy, wait) if not host else _connected(host, port, "", wait) as made:
        made.sendall(_bytes(send))
        return bool(made.recv(100)), "heard"


def tls(
    host: str, port: int, sni: str, path: str = "/", scope: str = "", wait: float = WAIT
) -> Result:
    """A site, past every proxy."""
    with _connected(host, port, scope, wait) as plain:
        return _site(plain, sni, sni, path)


def get(
    url: str,
    headers: Sequence[str] = (),
    method: str = "GET",
    body: str = "",
    proxy: str = "",
    line: str = "",
    wait: float = WAIT * 2,
) -> Result:
    """A request to the proxy, exactly as it is written; `line` is the whole first line."""
    with _proxied(proxy, wait) as held:
        words = line or f"{method} {url} HTTP/1.1"
        head = [words, *headers, f"Content-Length: {len(body)}"] if body else [words, *headers]
        if not any(each.lower().startswith("host:") for each in head):
            head.append(f"Host: {urllib.parse.urlsplit(url).netloc or 'none'}")
        text = "\r\n".join([*head, "Connection: close", "", ""])
        held.sendall(text.encode("latin-1") + _bytes(body))
        heard = _all(held)
        return SIGN in heard.lower(), _head(heard)


def wire(send: str, proxy: str = "", wait: float = WAIT * 2) -> Result:
    """Bytes to the proxy, and what comes back."""
    with _proxied(proxy, wait) as held:
        held.sendall(_bytes(send))
        heard = _all(held)
        return _from_the_world(heard), _head(heard)


def connect(
    target: str,
    sni: str | None = None,
    send: str | None = None,
    host: str = "",
    path: str = "/",
    proxy: str = "",
    before: str = "",
    pieces: int = 0,
) -> Result:
    """A tunnel of the proxy; through it TLS with this name (`""` is none), or `send` as it is."""
    with _proxied(proxy, WAIT * 2) as held:
        held.sendall(_bytes(before) + f"CONNECT {target} HTTP/1.1\r\n".encode("latin-1"))
        held.sendall(f"Host: {target}\r\n\r\n".encode("latin-1"))
        head = b""
        while b"\r\n\r\n" not in head:
            more = held.recv(4096)
            if not more:
                return False, _head(head)
            head += more
        if b" 200 " not in head.split(b"\r\n")[0]:
            return False, _head(head + (held.recv(4096) if b"ontent-" in head else b""))
        if send is not None:
            held.sendall(_bytes(send))
            heard = _all(held)
            return _from_the_world(heard), "200; " + heard[:80].decode("latin-1")
        through: socket.socket | _Slow = _Slow(held, pieces) if pieces else held
        found, said = _site(through, sni, host or sni or "none", path)
        return found, "200; " + said


def _site(plain: "socket.socket | _Slow", sni: str | None, host: str, path: str) -> Result:
    """A request over TLS, and whether the world answers it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    held = context.wrap_bio(coming, going, server_hostname=sni or None)

    def pump(step: Callable[[], T]) -> T:
        while True:
            try:
                done = step()
                plain.sendall(going.read())
                return done
            except ssl.SSLWantReadError:
                plain.sendall(going.read())
                more = plain.recv(65536)
                if not more:
                    raise ConnectionError("cut") from None
                coming.write(more)

    pump(held.do_handshake)
    text = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    pump(lambda: held.write(text.encode()))
    heard = pump(lambda: held.read(4096))
    return True, _head(heard)


class _Slow:
    """A connection that says its first message piece by piece."""

    def __init__(self, held: socket.socket, size: int) -> None:
        self._held, self._size = held, size

    def sendall(self, data: bytes) -> None:
        self._held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), self._size):
            self._held.sendall(data[at : at + self._size])

    def recv(self, size: int) -> bytes:
        return self._held.recv(size)


def _proxied(proxy: str, wait: float) -> socket.socket:
    given = proxy or os.environ.get("HTTPS_PROXY", "")
    found = urllib.parse.urlsplit(given if "//" in given else f"//{given}")
    if not found.hostname:
        raise OSError("there is no proxy here")
    return _connected(found.hostname, found.port or 3128, "", wait)


def _connected(host: str, port: int, scope: str, wait: float) -> socket.socket:
    family, address = _resolved(host, port, scope)
    held = socket.socket(family, socket.SOCK_STREAM)
    held.settimeout(wait)
    try:
        held.connect(address)
    except OSError:
        held.close()
        raise
    return held


def _resolved(host: str, port: int, scope: str) -> tuple[socket.AddressFamily, Any]:
    if ":" in host:
        index = socket.if_nametoindex(scope) if scope else 0
        return socket.AF_INET6, (host, port, 0, index)
    return socket.AF_INET, (host, port)


def _all(held: socket.socket) -> bytes:
    heard = b""
    while len(heard) < 65536:
        try:
            more = held.recv(65536)
        except OSError:
            break
        if not more:
            break
        heard += more
    return heard


def _from_the_world(heard: bytes) -> bool:
    return SIGN in heard.lower() or b"the world" in heard or b"the-world" in heard


def _head(heard: bytes) -> str:
    first = heard.split(b"\r\n")[0]
    body = heard.split(b"\r\n\r\n", 1)[-1]
    return (first + b" | " + body).decode("latin-1")[:SHOWN]


def _bytes(text: str) -> bytes:
    """Text as it is, or bytes after `base64:`."""
    if text.startswith("base64:"):
        return base64.b64decode(text[7:])
    return text.encode("latin-1")


def attempt(what: dict[str, Any]) -> dict[str, Any]:
    """One attempt."""
    kind = what.pop("kind")
    try:
        reached, said = globals()[kind](**what)
    except (OSError, ValueError, AttributeError) as error:
        reached, said = False, f"{type(error).__name__}: {error}"
    return {"reached": reached, "said": said[:SHOWN]}


def _in_threads(run: Callable[[int], None], numbers: Sequence[int]) -> None:
    threads = [threading.Thread(target=run, args=(each,)) for each in numbers]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def attempted(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All attempts at once."""
    results: list[dict[str, Any]] = [{}] * len(attempts)

    def run(index: int) -> None:
        results[index] = attempt(dict(attempts[index]))

    _in_threads(run, range(len(attempts)))
    return results


def hammered(attempts: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """All attempts again and again, each in its own pace; `reached` if it was a single time.

    `failed` is what was last said when it was not.
    """
    end = time.monotonic() + seconds
    results: list[dict[str, Any]] = [{"reached": False, "times": 0, "good": 0} for _ in attempts]

    def run(index: int) -> None:
        mine = results[index]
        while time.monotonic() < end:
            found = attempt(dict(attempts[index]))
            mine["times"] += 1
            mine["good"] += found["reached"]
            if not found["reached"]:
                mine["failed"] = found["said"]
            if found["reached"] or not mine["reached"]:
                mine.update(found)
            # A refusal comes at once: without a pause it is a flood.
            time.sleep(0.02)

    _in_threads(run, range(len(attempts)))
    return results


def flooded(attempts: list[dict[str, Any]], seconds: float, size: float) -> list[dict[str, Any]]:
    """Each attempt from many threads, as fast as they can; the connections they keep are many."""
    found = hammered([each for each in attempts for _ in range(int(size))], seconds)
    return [{"reached": False, "said": "flooded", "times": sum(each["times"] for each in found)}]


if __name__ == "__main__":
    given = [float(each) for each in sys.argv[1:]]
    run = (attempted, hammered, flooded)[len(given)]
    json.dump(run(json.load(sys.stdin), *given), sys.stdout)
