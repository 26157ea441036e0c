"""Terminals: a program that has one, and the small program that gives it to it.

The terminal has to become the program's own between the program's birth and its start. A function
of ours cannot run there, because this process must not fork; so another program starts first, makes
the terminal its own and becomes the one that was asked for, or reports why it cannot.
"""

import fcntl
import json
import os
import struct
import sys
import termios
from collections.abc import Mapping, Sequence

MAX_SIDE = 65_535
_LAUNCHER = """
import fcntl, json, os, signal, sys, termios
spec, report = int(sys.argv[1]), int(sys.argv[2])
try:
    with open(spec) as file:
        wanted = json.load(file)
    os.set_inheritable(report, False)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(wanted["argv"][0], wanted["argv"], wanted["env"])
except OSError as error:
    os.write(report, str(error.errno).encode())
"""


def open_terminal(columns: int, rows: int) -> tuple[int, int]:
    """A new terminal of this size: its two ends, ours first. Raises OSError."""
    ours, theirs = os.openpty()
    resize(ours, columns, rows)
    os.set_blocking(ours, False)
    return ours, theirs


def resize(terminal: int, columns: int, rows: int) -> None:
    """Change a terminal's size; its foreground programs are told by the kernel."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def foreground(terminal: int) -> int:
    """The process group that has the terminal now, 0 when none has."""
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return 0


def launcher(argv: Sequence[str], env: Mapping[str, str], report: int) -> tuple[list[str], int]:
    """The command line that starts `argv` on the terminal that is its standard input.

    It takes the returned descriptor, which the caller closes, and `report`: the number of the error
    is written there when the program cannot be started, and nothing when it was.
    """
    spec = os.memfd_create("start", os.MFD_CLOEXEC)
    text = json.dumps({"argv": list(argv), "env": dict(env)}).encode()
    with os.fdopen(os.dup(spec), "wb") as file:
        file.write(text)
    os.lseek(spec, 0, os.SEEK_SET)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(spec), str(report)], spec
