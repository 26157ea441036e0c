"""Files with the outputs that are too long for a result, for tools to read.

They lie in a directory that this server made and holds open, under names that nobody can guess
before they exist, and are opened only where nothing was: code in the pod cannot make the server
write elsewhere. It can change or remove a file afterwards, which is its own then.
"""

import asyncio
import contextlib
import errno
import functools
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from .spool import DIRECTORY, Spool
from .threads import aside

FILE_BYTES = 64 * 1024 * 1024
TOTAL_BYTES = 256 * 1024 * 1024
"""Of all files together, once their commands have ended: the oldest make room."""
MAX_FILES = 64
KEEP_SECONDS = 3600.0
_MAX_LATE = 4 * 1024 * 1024
"""Bytes that may wait for the disk before the command has to."""


class Overflow:
    """The file of one output. Used on the event loop; what it costs the disk is done in threads."""

    def __init__(self, path: str, open_file: Callable[[], int]) -> None:
        self.path = path
        self.pause: Callable[[], None] = lambda: None
        self.resume: Callable[[], None] = lambda: None
        """Stop and start what adds."""
        self._spool = Spool(FILE_BYTES, 2, open_file)
        self._offset = 0
        self._flushing: asyncio.Task[None] | None = None
        self._paused = False

    @property
    def size(self) -> int:
        """Bytes in the file; 0 when there is none."""
        return self._spool.length

    def add(self, data: bytes) -> None:
        """Append bytes; beyond the bound, and once the disk has failed, they are dropped."""
        self._spool.add(self._offset, 0, data)
        self._offset += len(data)
        if not self._spool.late:
            return
        if self._spool.late > _MAX_LATE and not self._paused:
            self._paused = True
            self.pause()
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())

    async def written(self) -> None:
        """Wait until what was added is in the file."""
        if self._flushing is not None:
            await self._flushing

    def close(self) -> None:
        """Give the room back; the file itself is the directory's."""
        self._spool.close()

    async def _flush(self) -> None:
        try:
            while self._spool.late:
                await self._spool.write()
        finally:
            self._flushing = None
            if self._paused:
                self._paused = False
                self.resume()


class Overflows:
    """The files of one server, each kept for a while and for as long as its owner."""

    def __init__(self, parent: str = DIRECTORY) -> None:
        self.directory = f"{parent}/.cloister-output-{secrets.token_hex(8)}"
        self._fd = -1
        """Of the directory. Closed as files are removed: aside, in the order of the calls."""
        self._making = threading.Lock()
        self._kept: dict[str, tuple[str, Overflow, asyncio.TimerHandle]] = {}
        """By name, oldest first: the owner, the file, and when it is removed."""
        self._going: set[asyncio.Future[object]] = set()
        """Those that are being removed."""

    def new(self, owner: str) -> Overflow:
        """A file for an output of this owner; it comes to be with the first bytes."""
        name = f"{secrets.token_hex(8)}.txt"
        overflow = Overflow(f"{self.directory}/{name}", lambda: self._open(name))
        timer = asyncio.get_running_loop().call_later(KEEP_SECONDS, self._remove, name)
        self._kept[name] = (owner, overflow, timer)
        return overflow

    def trim(self) -> None:
        """Remove the oldest files beyond the bounds; the newest stays."""
        total = sum(overflow.size for _, overflow, _ in self._kept.values())
        for name, (_, overflow, _) in list(self._kept.items())[:-1]:
            if total <= TOTAL_BYTES and len(self._kept) <= MAX_FILES:
                break
            total -= overflow.size
            self._remove(name)

    def forget(self, owner: str) -> None:
        """Remove an owner's files."""
        for name in [name for name, (each, _, _) in self._kept.items() if each == owner]:
            self._remove(name)

    async def room(self) -> None:
        """Wait while many files are being removed, each of which takes descriptors until then."""
        while len(self._going) > MAX_FILES:
            await asyncio.wait(self._going, return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        """Remove everything."""
        for name in list(self._kept):
            self._remove(name)
        aside(self._leave)

    def _remove(self, name: str) -> None:
        _, overflow, timer = self._kept.pop(name)
        timer.cancel()
        overflow.close()
        going = aside(functools.partial(self._unlink, name))
        if going is not None:
            # Both on the event loop, and nobody who waits for it takes it back.
            removed = asyncio.wrap_future(going)
            self._going.add(removed)
            removed.add_done_callback(self._going.discard)

    def _unlink(self, name: str) -> None:
        """Remove a file; takes no descriptor, of which there may be none."""
        with self._making:
            directory = self._fd
        # It never came to be, or a tool has removed it.
        with contextlib.suppress(OSError):
            if directory >= 0:
                os.unlink(name, dir_fd=directory)

    def _leave(self) -> None:
        with self._making:
            directory, self._fd = self._fd, -1
        if directory >= 0:
            os.close(directory)
            with contextlib.suppress(OSError):
                os.rmdir(self.directory)  # noqa: PTH106 - a Path tells no more

    def _open(self, name: str) -> int:
        """Make a file, in the directory that was made; raises OSError. Called in threads."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._making:
            if name not in self._kept:  # its removal has been, or waits, and finds nothing
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            if self._fd < 0:
                self._fd = self._make()
            try:
                return os.open(name, flags, 0o600, dir_fd=self._fd)
            except FileNotFoundError:
                # A tool removed the directory.
                aside(functools.partial(os.close, self._fd))
                self._fd = -1
                self._fd = self._make()
                return os.open(name, flags, 0o600, dir_fd=self._fd)

    def _make(self) -> int:
        Path(self.directory).mkdir(0o700)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self.directory, flags)
        except OSError:
            # Else it would be in the way of the next one.
            with contextlib.suppress(OSError):
                os.rmdir(self.directory)  # noqa: PTH106 - a Path tells no more
            raise
