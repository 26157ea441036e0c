"""The files of one bash: the command that it is to run, and what each of them goes through.

They lie in a directory that nobody can guess before it exists. Tools may do to it what they like
then, and cost the event loop no time by that. So it is used by its descriptor: what they put in its
place may lead to a disk, where they can have the kernel keep a directory locked for a minute.
"""

import asyncio
import contextlib
import errno
import functools
import os
import secrets
import stat
from pathlib import Path

from . import beneath
from .capture import Place
from .framing import script, source
from .threads import aside

_COMMAND, _OUT, _RUN = _NAMES = ("command", "out", "run")
_INLINE = 65_536


class ShellFiles:
    """Those of one bash, until they are cleared."""

    def __init__(self, state_dir: Path, mark: str) -> None:
        """Make them; raises OSError."""
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = state_dir.resolve() / f"{mark}-{secrets.token_hex(4)}"
        self.directory.mkdir(mode=0o700)
        command, out, self._run = (str(self.directory / each) for each in _NAMES)
        self.source = source(self._run)
        """Words that run the command."""
        self.out = Place(_OUT)
        try:
            self.out.directory = beneath.open_root(str(self.directory))
            _replace(_RUN, script(command, out), self.out.directory)
        except OSError:
            self.clear()
            raise

    async def put(self, command: str) -> None:
        """Write what bash is to run; raises OSError."""
        data = f"{command}\n".encode(errors="surrogatepass")
        if len(data) <= _INLINE:
            # The state directory is in memory: this is quicker than handing it to a thread.
            _replace(_COMMAND, data, self.out.directory)
        else:
            # A descriptor of its own: they may be cleared meanwhile.
            await asyncio.to_thread(_replace_last, _COMMAND, data, os.dup(self.out.directory))

    def are_there(self) -> bool:
        """Whether bash finds what every command goes through, as far as no link is followed."""
        directory = self.out.directory
        if not os.access(_RUN, os.R_OK, dir_fd=directory, follow_symlinks=False):
            return False
        named = f"../{self.directory.name}"
        with contextlib.suppress(OSError):
            found = os.stat(named, dir_fd=directory, follow_symlinks=False)
            return os.path.samestat(found, os.fstat(directory))
        return False

    def clear(self) -> None:
        """Remove them, and their directory, some time.

        What tools put beside them stays, and goes with the pod: it can be as much as they like.
        """
        directory, self.out.directory = self.out.directory, -1
        aside(functools.partial(_clear, self.directory, directory))


def _replace(name: str, data: bytes, directory: int) -> None:
    """Write a small file; the bare calls, because every command waits for this.

    Raises OSError, also where a tool has put a FIFO there, which nothing may wait for.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        if info.st_size:
            os.ftruncate(fd, 0)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _replace_last(name: str, data: bytes, directory: int) -> None:
    """The same, and close the directory."""
    try:
        _replace(name, data, directory)
    finally:
        os.close(directory)


def _clear(path: Path, directory: int) -> None:
    """Remove the files, and the directory; its descriptor is -1 where it could not be opened."""
    if directory >= 0:
        for each in _NAMES:
            with contextlib.suppress(OSError):
                os.unlink(each, dir_fd=directory)
        os.close(directory)
    with contextlib.suppress(OSError):
        path.rmdir()
