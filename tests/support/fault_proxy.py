"""A TCP relay that breaks connections as a network does, at the places that a schedule names.

Faults happen one after the other: each waits for its moment (bytes relayed in one direction since
the one before, or seconds), and hits the connection on which it came, or the newest one. Everything
is drawn from a seed, so that a schedule can be replayed.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

_PIECE = 65_536
_RESET = struct.pack("ii", 1, 0)


class Kind(Enum):
    """What a fault does."""

    RESET = "reset"
    """Both ends get an RST; what was on the way is lost."""
    CLOSE = "close"
    """Both ends get a FIN where a message may be half sent."""
    STALL = "stall"
    """Nothing passes in either direction for a while, then everything goes on."""
    DELAY = "delay"
    """One direction waits for a moment."""
    DUPLICATE = "duplicate"
    """A segment is sent twice, which TLS must refuse."""


class Way(Enum):
    """A direction."""

    UP = "up"
    """From the client to the server."""
    DOWN = "down"


@dataclass(frozen=True)
class Fault:
    """One fault and its moment."""

    kind: Kind
    way: Way
    after_bytes: int = 0
    """Relayed in its direction since the fault before; not used with after_seconds."""
    after_seconds: float = 0.0
    seconds: float = 0.0
    """How long a stall or delay lasts."""
    refused: int = 0
    """So many connections after a reset are reset too."""


def schedule(chance: random.Random, size: int, silence: float) -> tuple[Fault, ...]:
    """Up to three faults for a call that moves about `size` bytes.

    silence: seconds after which the client takes a connection for lost; some stalls are longer.
    """
    return tuple(
        _draw(chance, size, silence) for _ in range(chance.choices((0, 1, 2, 3), (3, 5, 3, 1))[0])
    )


def _draw(chance: random.Random, size: int, silence: float) -> Fault:
    kind = chance.choices(list(Kind), (30, 20, 12, 25, 13))[0]
    way = chance.choice(list(Way))
    moment: dict[str, Any] = {"after_bytes": chance.randint(1, max(2, size))}
    if chance.random() < 0.3:
        # Messages of a call are small: most moments lie before its first answer.
        moment = {"after_bytes": chance.randint(1, 600)}
    elif chance.random() < 0.3:
        moment = {"after_seconds": chance.uniform(0.0, 0.15)}
    seconds = 0.0
    if kind is Kind.STALL:
        seconds = chance.uniform(0.1, 1.4) * silence
    elif kind is Kind.DELAY:
        seconds = chance.uniform(0.001, 0.1)
    refused = chance.choice((0, 0, 0, 1, 2)) if kind is Kind.RESET else 0
    return Fault(kind, way, seconds=seconds, refused=refused, **moment)


class _Pair:
    """A client's connection and ours to the server."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near
        self.far = far
        self.open = asyncio.Event()
        self.open.set()
        self.broken = False

    def end(self, kind: Kind) -> None:
        """Break it; the relays notice."""
        self.broken = True
        self.open.set()
        for each in (self.near, self.far):
            with contextlib.suppress(OSError):
                if kind is Kind.RESET:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                else:
                    each.shutdown(socket.SHUT_RDWR)


class FaultProxy:
    """Relays to a port of loopback; `happened` counts the faults by kind."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.happened: Counter[Kind] = Counter()
        self.connections = 0
        self._due: list[Fault] = []
        self._counted = 0
        self._refuse = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pairs: list[_Pair] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def arm(self, faults: Sequence[Fault]) -> None:
        """Replace what is still due by these faults."""
        self._due = list(faults)
        self._refuse = 0
        self._next()

    def cut(self, kind: Kind = Kind.CLOSE) -> int:
        """Break all connections now; returns how many there were."""
        pairs = list(self._pairs)
        for each in pairs:
            self._break(each, kind)
        return len(pairs)

    async def close(self) -> None:
        """End everything."""
        self.arm(())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()

    async def accept(self) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            if self._refuse:
                self._refuse -= 1
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                near.close()
                continue
            self.start(self._serve(near))

    def start(self, work: Any) -> asyncio.Task[None]:
        """Run something until the proxy is closed."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, near: socket.socket) -> None:
        near.setblocking(False)
        with near, socket.socket() as far, contextlib.suppress(OSError):
            far.setblocking(False)
            await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", self._target))
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            pair = _Pair(near, far)
            self._pairs.append(pair)
            relays = [
                asyncio.create_task(self._relay(pair, near, far, Way.UP)),
                asyncio.create_task(self._relay(pair, far, near, Way.DOWN)),
            ]
            try:
                await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._pairs.remove(pair)
                for relay in relays:
                    relay.cancel()
                await asyncio.gather(*relays, return_exceptions=True)

    async def _relay(
        self, pair: _Pair, source: socket.socket, target: socket.socket, way: Way
    ) -> None:
        loop = asyncio.get_running_loop()
        while not pair.broken:
            data = await loop.sock_recv(source, _PIECE)
            await pair.open.wait()
            if not data or pair.broken:
                return
            while (fault := self._head(way)) and self._counted + len(data) >= fault.after_bytes:
                cut = max(0, fault.after_bytes - self._counted)
                first, data = data[:cut], data[cut:]
                await loop.sock_sendall(target, first)
                self._take(fault)
                if fault.kind is Kind.DUPLICATE:
                    await loop.sock_sendall(target, first[-1400:] or data[:1400])
                elif fault.kind is Kind.DELAY:
                    await asyncio.sleep(fault.seconds)
                else:
                    self._apply(fault, pair)
                    await pair.open.wait()
                    if pair.broken:
                        return
            if self._head(way):
                self._counted += len(data)
            await loop.sock_sendall(target, data)

    def _head(self, way: Way) -> Fault | None:
        """The fault that is due next, when it waits for bytes of this direction."""
        if not self._due or self._due[0].way is not way or self._due[0].after_seconds:
            return None
        return self._due[0]

    def _take(self, fault: Fault) -> None:
        self.happened[fault.kind] += 1
        self._due.pop(0)
        self._next()

    def _next(self) -> None:
        self._counted = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and self._due[0].after_seconds:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._due[0].after_seconds, self._strike, self._due[0])

    def _strike(self, fault: Fault) -> None:
        if self._pairs:
            self._take(fault)
            self._apply(fault, self._pairs[-1])
        else:
            self._due.pop(0)
            self._next()

    def _apply(self, fault: Fault, pair: _Pair) -> None:
        if fault.kind in (Kind.STALL, Kind.DELAY):
            pair.open.clear()
            asyncio.get_running_loop().call_later(fault.seconds, pair.open.set)
            return
        self._refuse = fault.refused
        # Between messages there is no segment at hand to duplicate.
        self._break(pair, Kind.CLOSE if fault.kind is Kind.DUPLICATE else fault.kind)

    def _break(self, pair: _Pair, kind: Kind) -> None:
        pair.end(kind)
        if kind is Kind.RESET:
            # An RST goes out when the last descriptor is closed: that is when its task ends.
            self._wake(pair)

    def _wake(self, pair: _Pair) -> None:
        for each in (pair.near, pair.far):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RD)


@contextlib.asynccontextmanager
async def fault_proxy(target: int) -> AsyncIterator[FaultProxy]:
    """A relay to this port of loopback, for as long as the context lasts."""
    proxy = FaultProxy(target)
    proxy.start(proxy.accept())
    try:
        yield proxy
    finally:
        await proxy.close()
