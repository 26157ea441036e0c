"""The files of one bash: the command that it is to run, and what each of them goes through.

They lie in a directory that nobody can guess before it exists. Tools may do to it what they like
then, and cost the event loop no time by that.
"""

import asyncio
import contextlib
import errno
import functools
import os
import secrets
import stat
from pathlib import Path

from .framing import script, source
from .threads import aside

_NAMES = ("command", "out", "run")
_INLINE = 65_536


class ShellFiles:
    """Those of one bash, until they are cleared."""

    def __init__(self, state_dir: Path, mark: str) -> None:
        """Make them; raises OSError."""
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = state_dir / f"{mark}-{secrets.token_hex(4)}"
        self.directory.mkdir(mode=0o700)
        self._command, self.out, self._run = (str(self.directory / each) for each in _NAMES)
        self.source = source(self._run)
        """Words that run the command."""
        try:
            self._device = self.directory.stat().st_dev
            _replace(self._run, script(self._command, self.out), self._device)
        except OSError:
            self.clear()
            raise

    async def put(self, command: str) -> None:
        """Write what bash is to run; raises OSError."""
        data = f"{command}\n".encode(errors="surrogatepass")
        if len(data) <= _INLINE:
            # The state directory is in memory: this is quicker than handing it to a thread.
            _replace(self._command, data, self._device)
        else:
            await asyncio.to_thread(_replace, self._command, data, self._device)

    def are_there(self) -> bool:
        """Whether bash finds what every command goes through."""
        return os.access(self._run, os.R_OK)

    def clear(self) -> None:
        """Remove them, and their directory, some time.

        What tools put beside them stays, and goes with the pod: it can be as much as they like.
        """
        aside(functools.partial(_clear, self.directory))


def _replace(path: str, data: bytes, device: int) -> None:
    """Write a small file; the bare calls, because every command waits for this.

    Raises OSError, also where a tool has put a FIFO there, which nothing may wait for, or led the
    way to another file system than this one: on a disk it may have made a file of a million pieces,
    which takes a minute to make empty.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_dev != device:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if info.st_size:
            os.ftruncate(fd, 0)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _clear(directory: Path) -> None:
    for each in _NAMES:
        with contextlib.suppress(OSError):
            (directory / each).unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()
