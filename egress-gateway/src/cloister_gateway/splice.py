"""Carries bytes between two sockets, both ways, no faster than each end takes them."""

import asyncio
import socket
import time

_BUFFER = memoryview(bytearray(65_536))
"""One for all connections: what an end does not take at once is copied, and nothing is read until
it has gone."""


class Splice:
    """Two connected sockets that do not block. Who made them closes them."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ways = (_Way(self, near, far), _Way(self, far, near))
        self._open = len(self._ways)
        self.moved = time.monotonic()
        """When something came last."""

    async def run(self, to_far: bytes, to_near: bytes, idle: float) -> None:
        """Carry until both ends are done, one fails, or nothing has come for `idle` seconds.

        `to_far` and `to_near` go first.
        """
        try:
            for way, first in zip(self._ways, (to_far, to_near), strict=True):
                way.start(first)
            while not self._over.done():
                left = self.moved + idle - time.monotonic()
                if left <= 0:
                    return
                await asyncio.wait([self._over], timeout=left)
        finally:
            for way in self._ways:
                way.stop()

    def ended(self) -> None:
        """One way is done."""
        self._open -= 1
        if not self._open:
            self.failed()

    def failed(self) -> None:
        """Neither end is of use any more."""
        if not self._over.done():
            self._over.set_result(None)


class _Way:
    """From one socket to the other."""

    def __init__(self, splice: Splice, source: socket.socket, sink: socket.socket) -> None:
        self._splice = splice
        self._source, self._sink = source, sink
        self._loop = asyncio.get_running_loop()
        self._rest = b""

    def start(self, first: bytes) -> None:
        self._rest = first
        if first:
            self._loop.add_writer(self._sink, self._write)
        else:
            self._loop.add_reader(self._source, self._read)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _read(self) -> None:
        try:
            count = self._source.recv_into(_BUFFER)
            self._splice.moved = time.monotonic()
            if count:
                sent = _send(self._sink, _BUFFER[:count])
                if sent < count:
                    self._rest = bytes(_BUFFER[sent:count])
                    self._loop.remove_reader(self._source)
                    self._loop.add_writer(self._sink, self._write)
                return
            self._loop.remove_reader(self._source)
            self._sink.shutdown(socket.SHUT_WR)
            self._splice.ended()
        except BlockingIOError:
            return
        except OSError:
            self._splice.failed()

    def _write(self) -> None:
        try:
            self._rest = self._rest[_send(self._sink, memoryview(self._rest)) :]
            if not self._rest:
                self._loop.remove_writer(self._sink)
                self._loop.add_reader(self._source, self._read)
        except OSError:
            self._splice.failed()


def _send(sink: socket.socket, data: memoryview) -> int:
    try:
        return sink.send(data)
    except BlockingIOError:
        return 0
