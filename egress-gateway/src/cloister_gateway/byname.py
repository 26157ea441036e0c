"""Lets clients pass that know of no proxy: they speak TLS to the gateway, and name where to.

haproxy hands such a connection over with the source's address before it. From then on it is what a
client of the proxy would have made of it, a CONNECT to the name in the TLS, and everything about it
is decided where that is. Nothing is decided here. Standard library only.
"""

import asyncio
import contextlib
import re
import socket
import time

from . import places
from .hello import MAX_HELLO, NotHello, server_name
from .helper import Rules, teller
from .hosts import canonical
from .reports import Reporter
from .settings import Settings
from .splice import Splice
from .state import HTTPS

HELLO_SECONDS = 10.0
"""A client must have said by then where it wants to."""
ANSWER_SECONDS = 60.0
"""Longer than squid takes for a name that is never answered."""
_HEAD = re.compile(
    rb"PROXY TCP[46] ([0-9a-f:.]{2,39}) [0-9a-f:.]{2,39} ([0-9]{1,5}) [0-9]{1,5}\r\n"
)
_MAX_HEAD = 107
"""PROXY protocol, version 1."""
_MAX_ANSWER = 16_384
_MAX_PARTS = 64
"""Reads of one first message: each costs time that all connections share."""
_PAUSE = 0.1
_BUFFER = 65_536
"""Bytes in each of a socket's buffers (the kernel takes it twice): by itself it takes megabytes for
who reads slowly, and one source may have hundreds of connections.
"""


class Refused(Exception):
    """A connection is to be closed."""


class ByName:
    """The connections of all sources; `rules` and `reporter` only tell who was turned away."""

    def __init__(self, settings: Settings, rules: Rules, reporter: Reporter) -> None:
        self._idle = float(settings.idle_seconds)
        self._rules = rules
        self._reporter = reporter
        self._tell = teller(reporter)
        self._timer: asyncio.TimerHandle | None = None
        self._free = asyncio.Semaphore(settings.max_connections)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Take connections for ever; `listener` does not block."""
        loop = asyncio.get_running_loop()
        while True:
            await self._free.acquire()
            try:
                near, _ = await loop.sock_accept(listener)
            except OSError:
                # It went away at once, or there is no descriptor left for it.
                self._free.release()
                await asyncio.sleep(_PAUSE)
                continue
            task = asyncio.create_task(self._handle(near))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free.release()

    async def _handle(self, near: socket.socket) -> None:
        with contextlib.closing(near):
            _bound(near)
            try:
                async with asyncio.timeout(HELLO_SECONDS):
                    head, name, hello = await self._asked(near)
                far = await self._connected(head, name)
            except (Refused, OSError, TimeoutError):
                return
            made, early = far
            with contextlib.closing(made):
                await Splice(near, made).run(hello, early, self._idle)

    async def _asked(self, near: socket.socket) -> tuple[bytes, str, bytes]:
        """haproxy's head, the name, and all that the client has said; Refused."""
        heard = await _until(near, b"\r\n", _MAX_HEAD)
        found = _HEAD.fullmatch(heard[0])
        if found is None:
            raise Refused
        head, hello = heard
        try:
            name = server_name(hello)
            for _ in range(_MAX_PARTS):
                if name is not None:
                    break
                hello += await _more(near, MAX_HELLO)
                name = server_name(hello)
            host = canonical(name or "")
            if host is None:
                raise NotHello("it has no name of a host, or comes in too many parts")
        except NotHello:
            self._report(found[1].decode(), int(found[2]))
            raise Refused from None
        return head, host, hello

    def _report(self, address: str, port: int) -> None:
        """Tell of a connection without a name; squid tells of all others."""
        self._tell(self._rules.current().decide(address, "CONNECT", "", str(HTTPS)), port)
        if self._timer is None:
            self._flush()

    def _flush(self) -> None:
        # Before what may fail: the next decision begins anew.
        self._timer = None
        self._reporter.flush()
        wait = self._reporter.wait()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(wait, self._flush) if wait is not None else None

    async def _connected(self, head: bytes, host: str) -> tuple[socket.socket, bytes]:
        """A tunnel that squid has granted, and what came through it already; Refused."""
        loop = asyncio.get_running_loop()
        far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            far.setblocking(False)
            _bound(far)
            async with asyncio.timeout(ANSWER_SECONDS):
                await loop.sock_connect(far, (places.LOOPBACK, places.NAMES_PORT))
                target = f"{host}:{HTTPS}"
                ask = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
                await loop.sock_sendall(far, head + ask.encode())
                answer, early = await _until(far, b"\r\n\r\n", _MAX_ANSWER)
            if answer.split(b" ", 2)[1:2] != [b"200"]:
                raise Refused
        except BaseException:
            far.close()
            raise
        return far, early


def _bound(made: socket.socket) -> None:
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for each in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        made.setsockopt(socket.SOL_SOCKET, each, _BUFFER)


async def _until(made: socket.socket, end: bytes, most: int) -> tuple[bytes, bytes]:
    """What comes up to `end`, with it, and what came after; Refused beyond `most` bytes."""
    heard = b""
    while (at := heard.find(end)) == -1:
        if len(heard) > most:
            raise Refused
        heard += await _more(made, MAX_HELLO)
    return heard[: at + len(end)], heard[at + len(end) :]


async def _more(made: socket.socket, most: int) -> bytes:
    heard = await asyncio.get_running_loop().sock_recv(made, most)
    if not heard:
        raise Refused
    return heard


def main(settings: Settings) -> None:
    """Serve until killed; OSError when the port is taken."""

    async def serve() -> None:
        reporter = Reporter(places.STATE / places.REPORTS_SOCKET, time.monotonic)
        rules = Rules(places.STATE / places.STATE_FILE)
        listener = socket.create_server((places.LOOPBACK, places.BY_NAME_PORT), backlog=4096)
        listener.setblocking(False)
        await ByName(settings, rules, reporter).serve(listener)

    asyncio.run(serve())
