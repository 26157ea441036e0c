"""Reading what a program prints, from a pipe or a terminal, into its output store."""

import asyncio
import contextlib
import fcntl
import os

from .outputs import CHUNK, OutputStore
from .wakes import wake

STDOUT, STDERR, TERMINAL = 1, 2, 3
_AT_ONCE = 4 * 1024 * 1024
"""Bytes that are taken at most after a program ended, when somebody else goes on printing."""
_PIPE = 65_536
"""Bytes that a pipe takes by default."""
_LOOK_SECONDS = 0.1
"""How often a terminal is looked at that no process has open, and what cannot be watched."""


class Source:
    """Our end of one stream, which this closes."""

    def __init__(self, fd: int, stream: int, store: OutputStore, *, shared: bool = False) -> None:
        """`shared`: others use the descriptor, too, until `drain` or `close` is called.

        Closed before, it would be something else's when they use it.
        """
        os.set_blocking(fd, False)
        self._fd = fd
        self._stream = stream
        self._store: OutputStore | None = store
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._wanted = self._reading = self._wide = self._over = False
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when no process holds the other end any more."""

    @property
    def held(self) -> bool:
        """Whether a process may still print."""
        return self._fd >= 0 and not self._over

    def resume(self) -> None:
        """Read whenever there is something; raises OSError where nothing more can be watched."""
        self._wanted = True
        if self.held and not self._reading:
            self._loop.add_reader(self._fd, self._read)
            self._reading = True

    def go_on(self) -> None:
        """The same after a pause; where a tool has taken all that this user may watch, later."""
        try:
            self.resume()
        except OSError:
            self._loop.call_later(_LOOK_SECONDS, self._try_again)

    def pause(self) -> None:
        """Let the program wait."""
        self._wanted = False
        self._stop()

    def read_all(self) -> None:
        """Take what is there now, and go on."""
        left = _AT_ONCE
        self._over = False
        while self.held and left > 0 and (taken := self._read()):
            left -= taken
        self.go_on()

    def drain(self) -> None:
        """From now on read and forget."""
        self._store = None
        self._shared = False
        if self._over:
            self.close()
        try:
            self.resume()
        except OSError:
            self.close()

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            self.pause()
            os.close(self._fd)
            self._fd = -1
            wake(self.closed)

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _read(self) -> int:
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return 0
        except OSError:
            # A terminal whose other end is closed by all says so by an error.
            data = b""
        if len(data) >= _PIPE and not self._wide:
            self._widen()
        if not data:
            self._end()
        elif self._store is not None:
            self._store.add(self._stream, data)
        return len(data)

    def _end(self) -> None:
        """Nobody has the other end open. A terminal can be opened again by who belongs to it, and
        closing it now would end them.
        """
        if not self._shared:
            self.close()
            return
        self._stop()
        self._over = True
        wake(self.closed)
        self._loop.call_later(_LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if self._fd >= 0 and self._over:
            self._over = False
            self._try_again()

    def _try_again(self) -> None:
        if self._wanted:
            self.go_on()

    def _widen(self) -> None:
        """Let the pipe of a program that prints much take more, so that it wakes us less often.

        Only then: the kernel bounds what all pipes of a user may take together.
        """
        self._wide = True
        with contextlib.suppress(OSError):  # a terminal, or beyond that bound
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, CHUNK)
