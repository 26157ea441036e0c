"""Writing to a program's standard input: each byte once, as fast as it is read."""

import asyncio
import functools
import os

from .errors import OutOfRange
from .hands import Hands
from .wakes import wake

END_OF_TRANSMISSION = b"\x04"
_LOOK_SECONDS = 0.1
"""How often a program that reads slowly is written to, where its reading cannot be waited for."""
_AT_ONCE = 65_536


class Stdin:
    """One end of a pipe, or of a terminal, that a program reads."""

    def __init__(
        self, fd: int, hands: Hands, *, terminal: bool, ended: "asyncio.Future[None]"
    ) -> None:
        self._fd = fd
        self._hands = hands
        self._terminal = terminal
        self._ended = ended
        self._lock = asyncio.Lock()
        self._last = b"\n"
        self._under_way: asyncio.Future[None] | None = None
        """Done when a thread has written; its caller may be gone by then."""
        self.accepted = 0
        self.closed = False

    async def write(self, offset: int, data: bytes, eof: bool) -> None:
        """Write what was not written before, then close when `eof`.

        Waits for the program to read. A program that does not read any more closes its standard
        input; what it did not take is not counted. Raises OutOfRange when bytes are missing.
        """
        async with self._lock:
            if self._under_way is not None:
                await self._either(self._under_way)
            if self._ended.done():
                # Nor may a thread write while another one still does, and closes it then.
                self.close()
            if self.closed:
                return
            if offset > self.accepted:
                raise OutOfRange(
                    "STDIN_OFFSET",
                    f"bytes before offset {offset} are missing",
                    accepted_bytes=str(self.accepted),
                )
            end = offset + len(data)
            while self.accepted < end and not self.closed:
                at = self.accepted - offset
                await self._write(data[at : at + _AT_ONCE])
            if eof and not self.closed:
                if self._terminal:
                    # Twice after an unfinished line: the first only hands that line over.
                    end_of_input = END_OF_TRANSMISSION * (1 if self._last == b"\n" else 2)
                    await self._write(end_of_input, counted=False)
                self.close()

    async def finish(self) -> None:
        """Close when whoever writes has noticed that the program ended."""
        async with self._lock:
            self.close()

    def close(self) -> None:
        """Close a pipe; a terminal's end belongs to who reads from it."""
        if not self.closed:
            self.closed = True
            if not self._terminal and self._under_way is None:
                self._end_input()

    async def _write(self, data: bytes, *, counted: bool = True) -> None:
        """Until the program's end has taken some of it, or it is closed."""
        taken = 0
        while not taken and not self.closed:
            if self._terminal:
                taken = self._wrote(data, counted, _put(self._fd, data))
            else:
                taken = await self._by_thread(data)
            if self._ended.done():
                self.close()
            elif not taken and not self.closed:
                await self._writable()

    async def _by_thread(self, data: bytes) -> int:
        """The kernel locks a pipe while somebody reads from it, too: see inlet."""
        before = self.accepted
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wrote(count: int | Exception) -> None:
            self._under_way = None
            self._wrote(data, True, -1 if isinstance(count, Exception) else count)
            if self.closed:
                self._end_input()
            wake(done)

        self._under_way = done
        self._hands.hand_in(functools.partial(_put, self._fd, data), wrote)
        await self._either(done)
        return self.accepted - before

    def _wrote(self, data: bytes, counted: bool, count: int) -> int:
        """Take note of what was written; returns how much that was."""
        if count < 0:
            self.closed = True
            return 0
        if count:
            self._last = data[count - 1 : count]
            self.accepted += count if counted else 0
        return count

    def _end_input(self) -> None:
        """Let the program see its end at once, which it may wait for."""
        self._hands.hand_in(functools.partial(os.close, self._fd))

    async def _either(self, done: "asyncio.Future[None]") -> None:
        """Wait for this, or for the program's end."""
        await asyncio.wait([done, self._ended], return_when=asyncio.FIRST_COMPLETED)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_writer(self._fd, wake, ready)
        except OSError:  # a tool has taken all that this user may watch
            await asyncio.wait([self._ended], timeout=_LOOK_SECONDS)
            return
        try:
            await self._either(ready)
        finally:
            loop.remove_writer(self._fd)


def _put(fd: int, data: bytes) -> int:
    """How many bytes went in: 0 where there is no room, -1 where nobody reads any more."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:
        return -1
