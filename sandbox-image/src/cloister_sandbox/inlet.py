"""Our ends of what tools print to.

A pipe is locked while any process writes to it or reads from it, and the kernel fetches what is
written from that process's memory meanwhile: from a disk that is gone, perhaps. Whoever reads then
waits, and who closes it, whatever flags they have set. So threads do both; only to look whether
there is something to read takes no lock.
"""

import array
import asyncio
import contextlib
import fcntl
import functools
import os
import select
import termios

from .hands import Hands
from .outputs import CHUNK
from .polling import events_now
from .wakes import wake, woken

FLUSH_SECONDS = 2.0
"""For so long what a program printed before its end is waited for, when somebody holds the pipe."""
_LOOK_SECONDS = 0.1
"""How often it is looked for something in what could not be watched."""
_AT_ONCE = 4 * 1024 * 1024
"""Bytes; more than a pipe takes."""
_PIPE = 65_536
"""Bytes that a pipe takes by default."""


class Inlet:
    """One of them, which this closes. Used on the event loop; a thread at a time has it, too."""

    def __init__(self, fd: int, hands: Hands, *, terminal: bool = False) -> None:
        """`fd` does not block."""
        self._fd = fd
        self._hands = hands
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._wanted = self._watched = self._busy = self._flushing = self._wide = False
        self._told: asyncio.Future[None] | None = None
        """Wakes who waits for the thread that reads."""
        self._looking: asyncio.TimerHandle | None = None

    @property
    def held(self) -> bool:
        """Whether a process may still print."""
        return self._fd >= 0

    def took(self, data: bytes) -> None:
        """Something was printed."""
        raise NotImplementedError

    def over(self) -> None:
        """Nobody has the other end open."""

    def resume(self) -> None:
        """Read whenever there is something; raises OSError where nothing more can be watched."""
        self._wanted = True
        if self.held and not (self._watched or self._busy or self._flushing):
            self._loop.add_reader(self._fd, self._ready)
            self._watched = True

    def go_on(self) -> None:
        """The same; where a tool has taken all that this user may watch, every now and then."""
        try:
            self.resume()
        except OSError:
            if self._looking is None:
                self._looking = self._loop.call_later(_LOOK_SECONDS, self._try_again)

    def pause(self) -> None:
        """Let who prints wait."""
        self._wanted = False
        self._unwatch()

    async def flush(self) -> None:
        """Take what is in the pipe by now, and go on.

        Twice FLUSH_SECONDS at most: who keeps the pipe locked keeps it from the result alone.
        """
        self._unwatch()
        self._flushing = True
        try:
            if self._busy:
                await self._thread()
            self._take_all()
            if self._busy:
                await self._thread()
        finally:
            self._flushing = False
            self.go_on()

    def drain(self) -> None:
        """From now on nobody wants what comes, but who prints must not wait for ever."""
        try:
            self.resume()
        except OSError:
            # Who goes on printing learns that nobody reads.
            self.close()

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            self.pause()
            fd, self._fd = self._fd, -1
            if not self._busy:
                self._hands.let_go(fd)

    def _ready(self) -> None:
        self._unwatch()
        self._begin()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def _try_again(self) -> None:
        self._looking = None
        if self._wanted:
            self.go_on()
            if self._looking is not None:  # in vain
                self._take_all()

    def _take_all(self) -> None:
        """Begin to take what is in the pipe by now."""
        if self.held and not self._busy:
            events = events_now(self._fd)
            if events == select.POLLHUP and not self._terminal:
                self._hands.let_go(self._fd)
                self._fd = -1
                self.over()
            elif events:
                self._begin(all_of_it=True)

    def _begin(self, *, all_of_it: bool = False) -> None:
        self._busy = True
        fd = self._fd
        self._hands.hand_in(
            functools.partial(_take, fd, self._terminal, self._wide, all_of_it),
            functools.partial(self._came, fd),
        )

    def _came(self, fd: int, found: "tuple[list[bytes], bool] | Exception") -> None:
        """A thread has read; at the end of a pipe it has closed it."""
        self._busy = False
        parts, ended = ([], False) if isinstance(found, Exception) else found
        closed = ended and not self._terminal
        if self._fd < 0:  # closed here meanwhile
            if not closed:
                self._hands.let_go(fd)
        else:
            if closed:
                self._fd = -1
            for data in parts:
                self._wide = self._wide or len(data) >= _PIPE
                self.took(data)
            if ended:
                self.over()
            elif self._wanted and not self._flushing:
                # Not read again at once, though there may be more: more of it is quicker.
                self.go_on()
        if self._told is not None:
            wake(self._told)

    async def _thread(self) -> None:
        """Wait for the thread that reads."""
        self._told = self._loop.create_future()
        try:
            await woken(self._told, FLUSH_SECONDS)
        finally:
            self._told = None


def _take(fd: int, terminal: bool, wide: bool, all_of_it: bool) -> tuple[list[bytes], bool]:
    """Read once, or all that is there, and whether that was the end."""
    parts: list[bytes] = []
    left = _AT_ONCE
    while left > 0:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return parts, False
        except OSError:
            # A terminal whose other end is closed by all says so by an error.
            data = b""
        if not data:
            if not terminal:
                os.close(fd)
            return parts, True
        if len(data) >= _PIPE and not wide:
            wide = True
            _widen(fd)
        if not all_of_it:
            return [data], False
        # Of a pipe no more than is there now: somebody may print without end. Once more than there
        # is to read shows the end, where it has come.
        left = left - len(data) if parts or terminal else waiting(fd) + 1
        parts.append(data)
    return parts, False


def waiting(fd: int) -> int:
    """Bytes in a pipe; as if some when nobody can tell."""
    count = array.array("i", [1])
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def _widen(fd: int) -> None:
    """Let the pipe of a program that prints much take more, so that it wakes us less often.

    Only then: the kernel bounds what all pipes of a user may take together.
    """
    with contextlib.suppress(OSError):  # a terminal, or beyond that bound
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CHUNK)
