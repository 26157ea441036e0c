"""Writing to a program's standard input: each byte once, as fast as it is read."""

import asyncio
import os

from .errors import OutOfRange
from .wakes import wake

END_OF_TRANSMISSION = b"\x04"
_LOOK_SECONDS = 0.1
"""How often a program that reads slowly is written to, where its reading cannot be waited for."""


class Stdin:
    """One end of a pipe, or of a terminal, that a program reads."""

    def __init__(self, fd: int, *, terminal: bool, ended: "asyncio.Future[None]") -> None:
        self._fd = fd
        self._terminal = terminal
        self._ended = ended
        self._lock = asyncio.Lock()
        self._last = b"\n"
        self.accepted = 0
        self.closed = False

    async def write(self, offset: int, data: bytes, eof: bool) -> None:
        """Write what was not written before, then close when `eof`.

        Waits for the program to read. A program that does not read any more closes its standard
        input; what it did not take is not counted. Raises OutOfRange when bytes are missing.
        """
        async with self._lock:
            if self.closed:
                return
            if offset > self.accepted:
                raise OutOfRange(
                    "STDIN_OFFSET",
                    f"bytes before offset {offset} are missing",
                    accepted_bytes=str(self.accepted),
                )
            view = memoryview(data)[self.accepted - offset :]
            while view and not self.closed:
                done = await self._write(view)
                self.accepted += done
                view = view[done:]
            if eof and not self.closed:
                if self._terminal:
                    # Twice after an unfinished line: the first only hands that line over.
                    await self._write(END_OF_TRANSMISSION * (1 if self._last == b"\n" else 2))
                self.close()

    async def finish(self) -> None:
        """Close when whoever writes has noticed that the program ended."""
        async with self._lock:
            self.close()

    def close(self) -> None:
        """Close a pipe; a terminal's end belongs to who reads from it."""
        if not self.closed:
            self.closed = True
            if not self._terminal:
                os.close(self._fd)

    async def _write(self, data: "memoryview | bytes") -> int:
        while not self.closed:
            try:
                done = os.write(self._fd, data[:65_536])
            except BlockingIOError:
                await self._writable()
            except OSError:
                self.close()
            else:
                self._last = bytes(data[done - 1 : done])
                return done
            if self._ended.done():
                self.close()
        return 0

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_writer(self._fd, wake, ready)
        except OSError:  # a tool has taken all that this user may watch
            await asyncio.wait([self._ended], timeout=_LOOK_SECONDS)
            return
        try:
            await asyncio.wait([ready, self._ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_writer(self._fd)
