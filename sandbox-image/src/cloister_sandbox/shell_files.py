"""The files of one bash: the command that it is to run, and what each of them goes through.

They lie in a directory that nobody can guess before it exists. Tools may do to it what they like
then. So it is used by its descriptor: what they put in its place may lead to a disk. And they can
have the kernel keep it, or a file in it, locked for as long as they can a pipe (see inlet): the
event loop waits for that once, and leaves all of it to threads from then on.
"""

import contextlib
import errno
import functools
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from . import beneath
from .framing import script, source
from .hands import Hands
from .threads import aside

T = TypeVar("T")
_COMMAND, _OUT, _RUN = _NAMES = ("command", "out", "run")
_INLINE = 65_536


class ShellFiles:
    """Those of one bash, until they are cleared."""

    def __init__(self, state_dir: Path, hands: Hands) -> None:
        """Make them; raises OSError."""
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Short: bash reads its name with every command, a system call for each character.
        self.directory = state_dir.resolve() / secrets.token_hex(8)
        self.directory.mkdir(mode=0o700)
        command, out, self._run = (str(self.directory / each) for each in _NAMES)
        self.source = source(self._run)
        """Words that run the command."""
        self._hands = hands
        self._fd = -1
        """Of the directory; -1 when it was closed."""
        try:
            self._fd = beneath.open_root(str(self.directory))
            _replace(_RUN, script(command, out), self._fd)
        except OSError:
            self.clear()
            raise

    async def put(self, command: str) -> int:
        """Write what bash is to run, and make the FIFO for what that prints.

        Returns our end of it; raises OSError.
        """
        data = f"{command}\n".encode(errors="surrogatepass")
        return await self._do(functools.partial(_put, data), at_once=len(data) <= _INLINE)

    async def take(self) -> None:
        """Remove the FIFO."""
        with contextlib.suppress(OSError):
            await self._do(_remove_output)

    async def are_there(self) -> bool:
        """Whether bash finds what every command goes through, as far as no link is followed."""
        try:
            return await self._do(functools.partial(_is_there, self.directory.name))
        except OSError:
            return False

    async def _do(self, work: Callable[[int], T], *, at_once: bool = True) -> T:
        """Call it with the directory's descriptor; raises OSError."""
        if at_once and not self._hands.wary:
            return self._hands.timed(functools.partial(work, self._fd))
        # A descriptor of its own: they may be cleared meanwhile.
        return await self._hands.run(functools.partial(_apart, work, os.dup(self._fd)))

    def clear(self) -> None:
        """Remove them, and their directory, some time.

        What tools put beside them stays, and goes with the pod: it can be as much as they like.
        """
        directory, self._fd = self._fd, -1
        aside(functools.partial(_clear, self.directory, directory))


def make_output(name: str, directory: int) -> int:
    """A new FIFO, opened to read what a command prints; raises OSError."""
    try:
        os.mkfifo(name, 0o600, dir_fd=directory)
    except FileExistsError:  # who was to remove it lacked a descriptor
        remove_output(name, directory)
        os.mkfifo(name, 0o600, dir_fd=directory)
    # A tool may have put something else there since: a link to what only the server may read.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=directory)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    return fd


def remove_output(name: str, directory: int) -> None:
    """Remove such a FIFO; raises OSError."""
    # What else a tool put there may be as large as it likes, and is found by the next.
    if stat.S_ISFIFO(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=directory)


def _put(data: bytes, directory: int) -> int:
    _replace(_COMMAND, data, directory)
    return make_output(_OUT, directory)


def _remove_output(directory: int) -> None:
    remove_output(_OUT, directory)


def _is_there(name: str, directory: int) -> bool:
    if not os.access(_RUN, os.R_OK, dir_fd=directory, follow_symlinks=False):
        return False
    found = os.stat(f"../{name}", dir_fd=directory, follow_symlinks=False)
    return os.path.samestat(found, os.fstat(directory))


def _apart(work: Callable[[int], T], directory: int) -> T:
    """Call it, and close the directory."""
    try:
        return work(directory)
    finally:
        os.close(directory)


def _replace(name: str, data: bytes, directory: int) -> None:
    """Write a small file; the bare calls, because every command waits for this.

    Raises OSError, also where a tool has put a FIFO there, which nothing may wait for.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _clear(path: Path, directory: int) -> None:
    """Remove the files, and the directory; its descriptor is -1 where it could not be opened."""
    if directory >= 0:
        for each in _NAMES:
            with contextlib.suppress(OSError):
                os.unlink(each, dir_fd=directory)
        os.close(directory)
    with contextlib.suppress(OSError):
        path.rmdir()
