"""Reading what a program prints, from a pipe or a terminal, into its output store."""

import asyncio
import contextlib
import fcntl
import os

from .outputs import CHUNK, OutputStore

STDOUT, STDERR, TERMINAL = 1, 2, 3
_AT_ONCE = 4 * 1024 * 1024
"""Bytes that are taken at most after a program ended, when somebody else goes on printing."""
_PIPE = 65_536
"""Bytes that a pipe takes by default."""


class Source:
    """Our end of one stream, which this closes."""

    def __init__(self, fd: int, stream: int, store: OutputStore) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._stream = stream
        self._store: OutputStore | None = store
        self._loop = asyncio.get_running_loop()
        self._reading = self._wide = False
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when no process holds the other end any more."""

    @property
    def held(self) -> bool:
        """Whether a process may still print."""
        return self._fd >= 0

    def resume(self) -> None:
        """Read whenever there is something."""
        if self.held and not self._reading:
            self._reading = True
            self._loop.add_reader(self._fd, self._read)

    def pause(self) -> None:
        """Let the program wait."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def read_all(self) -> None:
        """Take what is there now, and go on."""
        left = _AT_ONCE
        while self.held and left > 0 and (taken := self._read()):
            left -= taken
        self.resume()

    def drain(self) -> None:
        """From now on read and forget."""
        self._store = None
        self.resume()

    def close(self) -> None:
        """Stop reading."""
        if self.held:
            self.pause()
            os.close(self._fd)
            self._fd = -1
            self.closed.set_result(None)

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
            self.close()
        elif self._store is not None:
            self._store.add(self._stream, data)
        return len(data)

    def _widen(self) -> None:
        """Let the pipe of a program that prints much take more, so that it wakes us less often.

        Only then: the kernel bounds what all pipes of a user may take together.
        """
        self._wide = True
        with contextlib.suppress(OSError):  # a terminal, or beyond that bound
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, CHUNK)
