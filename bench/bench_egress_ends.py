"""Both ends of what bench_egress measures: a server, and clients. Run in a network namespace.

server CERTIFICATE      HTTPS on the first address; bytes without end, or one, on the other two
client TASK ...         prints its figures as JSON
"""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable

GATEWAY = ("10.90.0.1", 3128)
BY_NAME = ("10.90.0.1", 443)
SERVER, STREAM, SHORT = "151.101.0.10", "151.101.0.66", "151.101.0.53"
HOSTS = {SERVER: "ok.test", STREAM: "stream.test", SHORT: "short.test"}
_REQUEST = b"GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"
_CHUNK = b"\0" * 262_144


async def serve(certificate: str) -> None:
    """Serve until killed."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    await asyncio.start_server(_https, SERVER, 443, ssl=tls, backlog=4096)
    await asyncio.start_server(_stream, STREAM, 443, backlog=4096)
    await asyncio.start_server(_short, SHORT, 443, backlog=4096)
    print("up", flush=True)
    await asyncio.Event().wait()


async def _https(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(_ANSWER)
    except (asyncio.IncompleteReadError, OSError):
        pass
    writer.close()


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read(4096)
        while True:
            writer.write(_CHUNK)
            await writer.drain()
    except OSError:
        writer.close()


async def _short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read(4096)
        writer.write(b"x")
        while await reader.read(4096):
            pass
    except OSError:
        pass
    writer.close()


def dial(address: str, way: str) -> socket.socket:
    """A connection to a server: by the gateway's `gateway` or `by_name` port, or `direct`."""
    ways = {"gateway": GATEWAY, "by_name": BY_NAME, "direct": (address, 443)}
    made = socket.create_connection(ways[way], 30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if way == "gateway":
        host = HOSTS[address]
        made.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        head = made.recv(4096)
        if b" 200 " not in head:
            raise OSError(head[:200])
    return made


def hello(host: str) -> bytes:
    """The first message of a TLS client: what the gateway looks at; the rest it only passes on."""
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=host)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("a handshake without a server")


def latency(count: int) -> dict[str, list[float]]:
    """Milliseconds of requests: each on a new connection with TLS, and on one that is open; by the
    gateway, by its port for those who know of no proxy, and directly, in turns.
    """
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE

    def whole(way: str) -> float:
        began = time.perf_counter()
        with tls.wrap_socket(dial(SERVER, way), server_hostname="ok.test") as made:
            made.sendall(_REQUEST)
            made.recv(4096)
            return (time.perf_counter() - began) * 1000

    def again(made: ssl.SSLSocket) -> float:
        began = time.perf_counter()
        made.sendall(_REQUEST)
        made.recv(4096)
        return (time.perf_counter() - began) * 1000

    ways = {"": "gateway", "_by_name": "by_name", "_direct": "direct"}
    found: dict[str, list[float]] = {}
    for _ in range(count):
        for name, way in ways.items():
            found.setdefault(f"new{name}", []).append(whole(way))
    with contextlib.ExitStack() as stack:
        made = {
            name: stack.enter_context(tls.wrap_socket(dial(SERVER, way), server_hostname="ok.test"))
            for name, way in ways.items()
        }
        for _ in range(count * 4):
            for name, each in made.items():
                found.setdefault(f"open{name}", []).append(again(each))
    return found


def bulk(way: str, seconds: float) -> dict[str, float]:
    """Bytes of two downloads, for so many seconds."""
    first = hello(HOSTS[STREAM])
    connections = [dial(STREAM, way) for _ in range(2)]
    totals = [0, 0]
    began = time.monotonic()

    def take(index: int) -> None:
        made, buffer = connections[index], bytearray(1 << 20)
        made.sendall(first)
        while time.monotonic() - began < seconds:
            totals[index] += made.recv_into(buffer)

    _all([lambda index=index: take(index) for index in range(2)])  # type: ignore[misc]
    for each in connections:
        each.close()
    return {"bytes": sum(totals), "seconds": time.monotonic() - began}


def connections(way: str, seconds: float, threads: int) -> dict[str, float]:
    """Connections that were made, spoken over and ended, one after the other in each thread."""
    first = hello(HOSTS[SHORT])
    counts = [0] * threads
    began = time.monotonic()

    def loop(index: int) -> None:
        while time.monotonic() - began < seconds:
            with dial(SHORT, way) as made:
                made.sendall(first)
                if made.recv(10) == b"x":
                    counts[index] += 1

    _all([lambda index=index: loop(index) for index in range(threads)])  # type: ignore[misc]
    return {"count": sum(counts), "seconds": time.monotonic() - began}


def hold(way: str, count: int) -> None:
    """Open tunnels, say so, and keep them until stdin ends."""
    first = hello(HOSTS[SHORT])
    held = []
    for _ in range(count):
        made = dial(SHORT, way)
        made.sendall(first)
        made.recv(10)
        held.append(made)
    print(json.dumps({"held": len(held)}), flush=True)
    sys.stdin.read()


def _all(tasks: list[Callable[[], None]]) -> None:
    running = [threading.Thread(target=each) for each in tasks]
    for each in running:
        each.start()
    for each in running:
        each.join()


def main() -> None:
    """Be one end."""
    os.environ.pop("https_proxy", None)
    match sys.argv[1:]:
        case ["server", certificate]:
            asyncio.run(serve(certificate))
        case ["latency", count]:
            print(json.dumps(latency(int(count))))
        case ["bulk", way, seconds]:
            print(json.dumps(bulk(way, float(seconds))))
        case ["connections", way, seconds, threads]:
            print(json.dumps(connections(way, float(seconds), int(threads))))
        case ["hold", way, count]:
            hold(way, int(count))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
