"""cloister shell: a program of the sandbox on the terminal of this machine."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any

from .._errors import (
    CloisterError,
    FailedPreconditionError,
    OutcomeUnknownError,
    SessionEndedError,
    StartFailedError,
)
from .._outcomes import Exit, Gap
from .._programs import AsyncProcess
from .._sync import Session
from .._sync_client import Client
from .._sync_loop import run as on_loop
from .._sync_programs import Process
from .running import command_line

# Of what was printed before, so much is shown when a terminal is attached again.
_REPLAY_BYTES = 65_536
_READ_BYTES = 65_536
# Typed or pasted ahead of a program that does not read.
_AHEAD_BYTES = 1024 * 1024
_LOST = "\r\n[cloister: the connection is lost; it goes on as soon as it is back]\r\n"
_BACK = "\r\n[cloister: connected again]\r\n"


def shell(client: Client, arguments: argparse.Namespace) -> int:
    """cloister shell"""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print(
            "cloister: shell needs a terminal; to run a command without one, use cloister exec",
            file=sys.stderr,
        )
        return 1
    session = client.get_session(arguments.name)
    local = Terminal(sys.stdin.fileno(), sys.stdout.fileno(), arguments.escape)
    if arguments.attach:
        process = _attach(session, arguments.attach)
    else:
        process = session.start(
            command_line(arguments.command) if arguments.command else ["bash"],
            terminal=local.size(),
            env={"TERM": os.environ.get("TERM") or "xterm-256color"},
        )
    try:
        with local.raw():
            # Our own half of the process.
            carried = process._async  # noqa: SLF001
            ended = on_loop(lambda: local.carry(carried, again=bool(arguments.attach)))
    except (OutcomeUnknownError, SessionEndedError, StartFailedError):
        raise
    except (CloisterError, KeyboardInterrupt, SystemExit):
        _tell_how_to_attach(arguments, process)
        raise
    if ended is None:
        _tell_how_to_attach(arguments, process)
        return 0
    with contextlib.suppress(CloisterError):
        process.release()
    return ended.status or 0


def escape_key(text: str) -> int | None:
    """The byte of a key such as `^]`; None for `none`. Raises ValueError."""
    if text == "none":
        return None
    if len(text) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        return ord(text[1].upper()) - ord("@")
    raise ValueError(text)


def _attach(session: Session, process_id: str) -> Process:
    found = next((each for each in session.processes() if each.id == process_id), None)
    if found is None:
        # It says what is wrong in the server's words.
        return session.attach(process_id)
    return session.attach(process_id, max(0, found.output_bytes - _REPLAY_BYTES))


def _tell_how_to_attach(arguments: argparse.Namespace, process: Process) -> None:
    where = f" -n {arguments.namespace}" if arguments.namespace else ""
    print(
        f"[cloister: it goes on. Attach again with: cloister shell {arguments.name}{where} "
        f"--attach {process.id}]",
        file=sys.stderr,
    )


class Terminal:
    """The terminal of this machine.

    source, target: what is typed comes from the one and what is printed goes to the other.
    escape: the byte that detaches; None is none.
    """

    def __init__(self, source: int, target: int, escape: int | None) -> None:
        self._source = source
        self._target = target
        self._escape = escape
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resized = asyncio.Event()
        self._typed = bytearray()
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()

    def size(self) -> tuple[int, int]:
        """Columns and rows; a terminal that does not know its size has the usual one."""
        columns, rows = os.get_terminal_size(self._target)
        return columns or 80, rows or 24

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Pass every key on as it is; whatever happens, the terminal is as before afterwards."""
        before = termios.tcgetattr(self._source)

        def resized(_number: int, _frame: FrameType | None) -> None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._resized.set)

        def end(number: int, _frame: FrameType | None) -> None:
            raise SystemExit(128 + number)

        handlers = {signal.SIGWINCH: resized, signal.SIGTERM: end, signal.SIGHUP: end}
        earlier = {number: signal.signal(number, each) for number, each in handlers.items()}
        try:
            # What was typed meanwhile is kept.
            tty.setraw(self._source, termios.TCSANOW)
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            # The terminal itself may be gone.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._source, termios.TCSADRAIN, before)

    async def carry(self, process: AsyncProcess, *, again: bool) -> Exit | None:
        """Connect a program to it, until the program ends, or None: until it is detached.

        again: it was connected before, and should draw what it shows anew.
        """
        self._loop = asyncio.get_running_loop()
        process.on_loss = lambda lost: self._say(_LOST if lost else _BACK)
        printing = asyncio.create_task(self._print(process))
        reading = asyncio.create_task(self._read())
        others = [
            asyncio.create_task(_while_it_runs(self._write(process))),
            asyncio.create_task(_while_it_runs(self._fit(process, again=again))),
        ]
        everything: list[asyncio.Task[Any]] = [printing, reading, *others]
        waited = set(everything)
        try:
            while not printing.done() and not reading.done():
                done, waited = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.result()
            return printing.result() if printing.done() else None
        finally:
            for each in everything:
                each.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    async def _print(self, process: AsyncProcess) -> Exit:
        async for event in process:
            if isinstance(event, Gap):
                self._say(f"\r\n[cloister: {event.end - event.start} bytes were not kept]\r\n")
            else:
                await asyncio.to_thread(_write_all, self._target, event.data)
        return await process.result()

    async def _read(self) -> None:
        """Collect what is typed, until the escape or the terminal's end."""
        while True:
            if len(self._typed) >= _AHEAD_BYTES:
                await self._taken.wait()
            await _readable(self._source)
            try:
                data = os.read(self._source, _READ_BYTES)
            except OSError:
                data = b""
            at = -1 if self._escape is None else data.find(self._escape)
            self._typed += data if at < 0 else data[:at]
            self._taken.clear()
            self._changed.set()
            if at >= 0 or not data:
                return

    async def _write(self, process: AsyncProcess) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            data = bytes(self._typed)
            self._typed.clear()
            self._taken.set()
            if data:
                await process.write(data)

    async def _fit(self, process: AsyncProcess, *, again: bool) -> None:
        """Keep the program's terminal as large as this one."""
        if again:
            # Programs draw anew when the size changes.
            columns, rows = self.size()
            await process.resize(columns, max(1, rows - 1))
        while True:
            await process.resize(*self.size())
            await self._resized.wait()
            self._resized.clear()

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._target, text.encode())


async def _while_it_runs(work: Coroutine[Any, Any, None]) -> None:
    """What makes no sense any more after the program's end: whoever prints sees that end."""
    try:
        await work
    except FailedPreconditionError as error:
        if error.reason not in ("NOT_RUNNING", "STDIN_CLOSED"):
            raise


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
