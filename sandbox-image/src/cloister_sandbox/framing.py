"""What a shell is told, and what it tells: the words on bash's standard input and status socket.

bash reads its standard input byte by byte, a system call each, so what is said there is short.
"""

import re
import shlex
from pathlib import Path

from .interrupts import ON_INTERRUPT

STATUS = 50
"""Descriptor of the status socket in the shell: between those that bash takes for itself from 10 up
and from 63 down, and below the smallest limits that `ulimit -n` is set to."""
REAP = "( \\builtin : )"
"""Makes bash take notice of all its children that have ended: an interrupt that ended a script
leaves it deaf to SIGCHLD (bash 5.2)."""
_MOST_CODE = 255
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
    if found is None or found["nonce"] != nonce or int(found["code"]) > _MOST_CODE:
        return None
    return int(found["code"]), found["cwd"]


def waits(pid: int) -> bool:
    """Whether a process sleeps."""
    try:
        # A name in it is whatever bytes its owner likes.
        stat_line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat_line[stat_line.rindex(b")") + 2 :].startswith(b"S")
