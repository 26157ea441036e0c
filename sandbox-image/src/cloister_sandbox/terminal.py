"""Terminals: a program that has one, and the small program that gives it to it.

The terminal has to become the program's own between the program's birth and its start. A function
of ours cannot run there, because this process must not fork; so another program starts first, makes
the terminal its own and becomes the one that was asked for, or reports why it cannot.
"""

import asyncio
import fcntl
import functools
import json
import os
import struct
import sys
import termios
from collections.abc import Mapping, Sequence
from typing import Any

from .hands import Hands
from .inlet import FLUSH_SECONDS
from .polling import readable_now
from .wakes import wake

MAX_SIDE = 65_535
LAUNCH_SECONDS = 30.0
"""In which a program must have got its terminal: tools can stop who gives it."""
_LOOK_SECONDS = 0.1
"""How often it is looked whether it has, where that cannot be waited for."""
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
    """A new terminal of this size: its two ends, ours first. Raises OSError.

    For threads: tools can open it, too, as soon as it is there.
    """
    ours, theirs = os.openpty()
    resize(ours, columns, rows)
    os.set_blocking(ours, False)
    return ours, theirs


def resize(terminal: int, columns: int, rows: int) -> None:
    """Change a terminal's size; its foreground programs are told by the kernel."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def resize_held(terminal: int, columns: int, rows: int, hands: Hands) -> None:
    """The same with one that a program has: whoever asks for its size keeps that locked meanwhile,
    as a pipe (see inlet).
    """
    await hands.run(functools.partial(_resize_own, os.dup(terminal), columns, rows))


def _resize_own(terminal: int, columns: int, rows: int) -> None:
    try:
        resize(terminal, columns, rows)
    finally:
        os.close(terminal)


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
    try:
        with os.fdopen(spec, "wb", closefd=False) as file:
            file.write(text)
        os.lseek(spec, 0, os.SEEK_SET)
    except OSError:
        os.close(spec)
        raise
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(spec), str(report)], spec


async def launched(answer: int, ended: "asyncio.Future[Any]", hands: Hands) -> bytes | None:
    """Wait for what is reported; empty when the program runs, None when nothing is in time, or
    before the launcher has `ended`.

    `answer` is the other end of `report`, which does not block, and which this closes. Tools can
    open that pipe, too, write there, take what is in it, or keep it locked (see inlet).
    """
    told = False
    try:
        told = await _readable(answer, ended, LAUNCH_SECONDS)
    finally:
        if not told:
            hands.let_go(answer)
    if not told:
        return None
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            return await hands.run(functools.partial(_report, answer))
    except TimeoutError:
        return b"?"


def _report(answer: int) -> bytes:
    try:
        return os.read(answer, 16)
    except OSError:
        return b"?"
    finally:
        os.close(answer)


async def _readable(fd: int, ended: "asyncio.Future[Any]", seconds: float) -> bool:
    """Wait for something to read, or its end; False when the program ends before, or time does."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    until = loop.time() + seconds
    try:
        loop.add_reader(fd, wake, ready)
    except OSError:  # a tool has taken all that this user may watch
        while not (readable_now(fd) or ended.done()) and loop.time() < until:
            await asyncio.wait([ended], timeout=_LOOK_SECONDS)
    else:
        try:
            both = [ready, ended]
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(fd)
    # Both may have come: what ended closed its end before.
    return readable_now(fd)
