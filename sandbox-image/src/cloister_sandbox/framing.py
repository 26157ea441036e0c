"""What a shell is told, and what it tells: the words on bash's standard input and status pipe.

bash reads its standard input byte by byte, a system call each, so what is said there is short.
"""

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import re
import shlex
import stat
import termios
from pathlib import Path

from .interrupts import ON_INTERRUPT

STATUS = 50
"""Descriptor of the status pipe in the shell: between those that bash takes for itself from 10 up
and from 63 down, and below the smallest limits that `ulimit -n` is set to."""
REAP = "( \\builtin : )"
"""Makes bash take notice of all its children that have ended: an interrupt that ended a script
leaves it deaf to SIGCHLD (bash 5.2)."""
_INLINE = 65_536
_STATUS_LINE = re.compile(r"(?P<nonce>[0-9a-f]{8}) (?P<code>[0-9]{1,3}) (?P<cwd>.*)", re.DOTALL)


def script(command: str, output: str) -> bytes:
    """The file that every command goes through: runs the file `command`, its output to a FIFO."""
    command, output = shlex.quote(command), shlex.quote(output)
    line = f"\\builtin source {command} </dev/null >{output} 2>&1 {STATUS}>&-\n"
    return f"{ON_INTERRUPT}{line}".encode()


def source(path: str) -> str:
    """Words that run such a file."""
    return f"\\builtin source {shlex.quote(path)}"


def report(nonce: str) -> str:
    """Words that report how the command before them ended."""
    words = f"""printf '%s %d %s\\0' {nonce} "$?" "$PWD" >&{STATUS}"""
    return f"{{ \\builtin {words}; }} 2>/dev/null"


def told(line: str | None, nonce: str) -> tuple[int, str] | None:
    """Exit code and directory that a report tells; None when it is no report of this command."""
    found = _STATUS_LINE.fullmatch(line) if line is not None else None
    if found is None or found["nonce"] != nonce:
        return None
    return int(found["code"]), found["cwd"]


def unread(fd: int) -> int:
    """Bytes in a pipe that its reader has not taken; as if some when nobody can tell."""
    count = array.array("i", [1])
    with contextlib.suppress(OSError, ValueError):
        fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def waits(pid: int) -> bool:
    """Whether a process sleeps."""
    try:
        # A name in it is whatever bytes its owner likes.
        stat_line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat_line[stat_line.rindex(b")") + 2 :].startswith(b"S")


def replace(path: str, data: bytes) -> None:
    """Write a small file; the bare calls, because every command waits for this.

    Raises OSError, also where a tool has put a FIFO there, which nothing may wait for.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


async def put(path: str, command: str) -> None:
    """Write a command into the file that bash is to run; raises OSError."""
    data = f"{command}\n".encode(errors="surrogatepass")
    if len(data) <= _INLINE:
        # The state directory is in memory: this is quicker than handing it to a thread.
        replace(path, data)
    else:
        await asyncio.to_thread(replace, path, data)


def clear(directory: Path, *files: str) -> None:
    """Remove a shell's files and their directory.

    What tools put beside them stays, and goes with the pod: it can be as much as they like.
    """
    for each in files:
        with contextlib.suppress(OSError):
            os.unlink(each)  # noqa: PTH108 - a Path tells no more
    with contextlib.suppress(OSError):
        directory.rmdir()
