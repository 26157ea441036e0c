"""One persistent bash, and the framing that tells where a command's output ends.

A command is written to a file and sourced; its status comes back on a socket of its own, its output
through a FIFO of its own. So a syntax error, an unterminated quote or `exec >/dev/null` spoils one
command and not the shell, a background job's later output reaches nobody else's result, and nothing
a command prints can be mistaken for its status.
"""

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .capture import Output, Tail, readable
from .framing import REAP, STATUS, report, told, waits
from .interrupts import interrupt
from .kin import MARK, background, kill_started
from .lacking import no_room
from .leftovers import KEPT
from .overflow import Overflows
from .processes import Reaper
from .shell_files import ShellFiles
from .wakes import wake, woken
from .wire import Wire

_MAX_STATUS = 16_384
"""Bytes; the status line holds a path. Tools can write there, too."""
_QUICK = 0.002
"""Seconds after which a command's output is read while it runs; most commands ended before."""
_LOOK_SECONDS = 0.25
_LOOKS = 4
"""So often in a row a shell that has nothing to do, and told no status, is seen before it counts
as lost: a tool may have made it deaf."""
Cancel: TypeAlias = "asyncio.Future[None]"
"""Done when the caller no longer wants the result."""


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    output: str
    total_bytes: int
    omitted_bytes: int
    code: int
    """Exit code; 128 + n when signal n ended the command, as bash reports it."""
    cwd: str
    wall: float
    timed_out: bool = False
    cancelled: bool = False
    shell_lost: bool = False
    shell_closed: bool = False
    """Its context was closed, or the server is going away."""
    surviving: int = 0
    """Processes of the shell that go on in the background."""
    reopened: bool = False
    """The shell before had ended since its last command, and this is a new one."""
    file: str = ""
    """Path of the file with the whole output, or its first bytes; empty when there is none."""
    file_bytes: int = 0


class ShellError(Exception):
    """bash cannot be started or used; the message says why."""


class NotNow(ShellError):
    """Nothing can be begun for want of room for it; bash is as it was."""


class Shell:
    """A persistent bash of one context. Commands run one at a time; the caller serialises them."""

    def __init__(
        self,
        name: str,
        state_dir: Path,
        reaper: Reaper,
        overflows: Overflows | None = None,
    ) -> None:
        self._name = f"{name}-{secrets.token_hex(4)}"
        self._mark = ""
        self._state_dir = state_dir
        self._files: ShellFiles | None = None
        self._reaper = reaper
        self._overflows = overflows
        self._new_file = None if overflows is None else functools.partial(overflows.new, self._name)
        self._exit: asyncio.Future[int] | None = None
        self._pid = 0
        self._wire: Wire | None = None
        self._received = bytearray()
        self._nonce = self._last_nonce = ""
        """Of the line that bash holds, or runs, and of the one before."""
        self._held = False
        """Whether bash holds the next command's line, all but its end."""
        self._reported: asyncio.Future[None] | None = None
        """Wakes who waits for the running command."""
        self._over: asyncio.Future[str | None] | None = None
        """Of the running command: its status line, or None when the shell ended instead."""
        self._interrupted = False
        self._earlier: list[int] = []
        """What commands before the running one left in the background."""
        self._looks: asyncio.TimerHandle | None = None
        self._outputs: list[Output] = []
        self.cwd = ""
        self.retired = False
        self.output: Output | None = None
        """Of the running command."""

    @property
    def alive(self) -> bool:
        """Whether there is a shell to run the next command in."""
        return self._exit is not None and not self._exit.done()

    @property
    def ended(self) -> bool:
        """Whether there was a shell, which ended by itself."""
        return self._exit is not None and self._exit.done()

    async def open(self, cwd: str, env: Mapping[str, str]) -> None:
        """Start bash in `cwd` with exactly these variables; raises ShellError."""
        await self.close()
        if self.retired:
            raise ShellError("this context was closed")
        try:
            status = await self._start(cwd, env)
        except BaseException as error:
            await self.close()
            # No thread can be started, or a NUL character is in a variable.
            if isinstance(error, OSError | RuntimeError | ValueError):
                why = getattr(error, "strerror", error)
                raise ShellError(f"bash cannot be started in {cwd}: {why}") from None
            raise
        self.cwd = cwd
        if status != STATUS:
            self._send(f"exec {STATUS}>&{status} {status}>&-\n")
        self._hold()

    async def _start(self, cwd: str, env: Mapping[str, str]) -> int:
        """Start bash and listen to it; returns its own descriptor of the status socket."""
        wire = self._wire = Wire()
        status = wire.status.fileno()
        # One of its own: what is left of the bash before may be ended later.
        self._mark = f"{self._name}-{secrets.token_hex(4)}"
        with contextlib.ExitStack() as theirs:
            for each in (wire.stdin, wire.status):
                theirs.enter_context(each)
            hands = self._reaper.hands
            files = functools.partial(ShellFiles, self._state_dir, hands)
            self._files = await hands.run(files) if hands.wary else hands.timed(files)
            self._pid, self._exit = await self._reaper.start(
                ["/bin/bash", "--noprofile", "--norc"],
                cwd=cwd,
                env={**env, "TERM": "dumb", MARK: self._mark},
                stdin=wire.stdin.fileno(),
                pass_fds=[status],
                theirs=theirs.pop_all(),
            )
        if self.retired:
            # Meanwhile: whoever closed the context found nothing to end.
            raise ShellError("this context was closed")
        self._received.clear()
        try:
            wire.listen(self._read_status)
        except OSError as error:  # a tool has taken all that this user may watch by epoll
            raise ShellError(f"bash cannot be heard: {error.strerror}") from None
        self._exit.add_done_callback(self._ended)
        return status

    @property
    def leader(self) -> tuple[int, str]:
        """The pid of bash, and the mark of all that it starts."""
        return self._pid, self._mark

    async def run(
        self,
        command: str,
        timeout: float,
        cancel: Cancel,
        into: Tail | None = None,
        *,
        cancel_kills: bool = False,
    ) -> Finished:
        """Run a command; `timeout` is in seconds, `into` receives what it prints.

        A command that runs out of time, or is cancelled, is interrupted (see `interrupt`), and what
        it printed until then is kept; with `cancel_kills` to cancel it ends the shell at once.
        Raises NotNow, and ShellError when a tool took its own files away: then a new one helps.
        """
        began = time.monotonic()
        files = self._files
        if files is None:
            raise ShellError("it was closed")
        unusable = f"its files in {files.directory} cannot be used"
        try:
            printed = await files.put(command)
        except OSError as error:
            kind = NotNow if no_room(error) else ShellError
            raise kind(f"{unusable}: {error.strerror}") from None
        output = Output(printed, self._reaper.hands, into or Tail(overflow=self._new_file))
        if self._files is not files:
            output.close()
            raise ShellError("it was closed")
        self.output = output
        self._outputs = [each for each in self._outputs if each.held]
        self._outputs.append(output)
        loop = asyncio.get_running_loop()
        over = self._over = loop.create_future()
        self._interrupted = False
        self._looks = loop.call_later(_QUICK, self._first_look, output)
        if not self._held:
            self._hold()
        nonce, self._held = self._nonce, False
        self._send("\n")
        if not self.alive:
            self._report(None)
        try:
            reason = await self._first(over, timeout, cancel)
            if reason == "cancel" and cancel_kills:
                await self._end()
            elif reason != "status":
                await self.interrupt()
            status = await over
            answer = told(status, nonce)
            if answer is not None and self._interrupted:
                try:
                    await kill_started(self._pid, self._mark, self._earlier)
                except OSError:  # nobody can be looked for: it ends with the shell
                    answer = None
            lost = answer is None
            if answer is not None:
                code, self.cwd = answer
                self._earlier = await background(self._pid, self._mark, self._earlier)
                if self._interrupted:
                    self._send(f"{REAP}\n")
                self._hold()
            else:
                if self.alive:
                    await self._end()
                code = await self._exit if self._exit else 1
                code = 128 - code if code < 0 else code
                self._earlier = []
        finally:
            self._looks.cancel()
            self._over = self.output = None
            tail = await output.finish()
            await files.take()
            KEPT.keep(output)
        if code and not tail.total and not self.retired and not await files.are_there():
            # bash found nothing to run. Only looked for now: every command would pay for it.
            raise ShellError(f"{unusable}: one of them is gone")
        file = await tail.filed() if tail.omitted else None
        if file is not None and self._overflows is not None:
            self._overflows.trim()
            await self._overflows.room()
        return Finished(
            output=readable(tail.text()),
            total_bytes=tail.total,
            omitted_bytes=tail.omitted,
            code=code,
            cwd=self.cwd,
            wall=time.monotonic() - began,
            timed_out=reason == "timeout",
            cancelled=reason == "cancel",
            shell_lost=lost,
            shell_closed=self.retired,
            surviving=len(self._earlier),
            file=file.path if file is not None else "",
            file_bytes=file.size if file is not None else 0,
        )

    async def interrupt(self) -> None:
        """Stop the running command, with the shell only where it must be.

        Everything that it started ends too, in the background as well; what earlier commands
        started goes on if the shell survives.
        """
        over = self._over
        if over is not None and not over.done():
            self._interrupted = True
            await interrupt(self._pid, self._mark, self._earlier, over)
            if not over.done():
                await self._end()

    async def close(self) -> None:
        """End the shell and everything that was started from it."""
        await self._end()
        for output in self._outputs:
            output.close()
        self._outputs.clear()
        self._report(None)
        if self._wire is not None:
            self._wire.close(self._reaper.hands)
        self._pid, self._exit, self._wire = 0, None, None
        self._earlier, self._held = [], False
        if self._files is not None:
            self._files.clear()
            self._files = None

    async def retire(self) -> None:
        """Close for good; a command that runs ends with what it printed."""
        self.retired = True
        await self.close()
        if self._overflows is not None:
            self._overflows.forget(self._name)

    async def _end(self) -> None:
        """End bash with all that was started from it; afterwards it has ended."""
        if self._exit is not None:
            await self._reaper.end(self._pid, self._mark, self._exit)

    def _hold(self) -> None:
        """Let bash read the next command's line, but not its end: it runs it when that comes."""
        source = self._files.source if self._files is not None else ":"
        self._nonce, self._last_nonce = secrets.token_hex(4), self._nonce
        self._held = self._send(f"{source}; {report(self._nonce)}")

    def _send(self, text: str) -> bool:
        return self._wire is not None and self._wire.tell(text)

    def _first_look(self, output: Output) -> None:
        """Read what a command prints that is not done at once; ask once more for its status.

        Some errors make bash drop everything that began on the line it is at, the report too.
        """
        self._send(f"{report(self._nonce)}\n")
        output.go_on()
        self._look(0)

    def _look(self, deaf: int) -> None:
        """See whether the shell of a command that is not done at once still hears.

        bash takes the line that reports the status when the command is over. A shell that has
        taken it, and waits, will say nothing any more: a tool made `builtin` something else.
        """
        heard = self._wire is not None and not self._wire.unread
        deaf = deaf + 1 if heard and waits(self._pid) else 0
        if deaf > _LOOKS:
            self._report("")
            return
        loop = asyncio.get_running_loop()
        self._looks = loop.call_later(_LOOK_SECONDS, self._look, deaf)

    def _read_status(self) -> None:
        # At its end another program has taken the shell's place, and may go on for ever; or bash
        # lost its descriptor, and ends when there is nothing more to read.
        data = self._wire.hear() if self._wire is not None else None
        if not data:
            return
        self._received.extend(data)
        *lines, rest = self._received.split(b"\0")
        self._received = rest
        for line in lines:
            if self._over is None or self._over.done():
                break  # nobody asks; a tool can say as much as it likes
            # A command that was asked twice reports twice, the second time when it is over.
            if not (self._last_nonce and line.startswith(self._last_nonce.encode())):
                self._report(line.decode(errors="surrogateescape"))
        if len(rest) > _MAX_STATUS:
            # No shell of ours says that.
            self._received.clear()
            self._report("")

    def _ended(self, exited: "asyncio.Future[int]") -> None:
        """The shell has ended; what it had still said counts."""
        if exited is self._exit:
            self._read_status()
            self._report(None)

    def _report(self, status: str | None) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(status)
        if self._reported is not None:
            wake(self._reported)

    async def _first(
        self, over: "asyncio.Future[str | None]", timeout: float, cancel: Cancel
    ) -> str:
        """What comes first: status (also of a shell that ended), timeout or cancel."""
        if not over.done() and not cancel.done():
            waiter = self._reported = asyncio.get_running_loop().create_future()

            def cancelled(_: Cancel) -> None:
                wake(waiter)

            cancel.add_done_callback(cancelled)
            try:
                await woken(waiter, timeout)
            finally:
                cancel.remove_done_callback(cancelled)
                self._reported = None
        if over.done():
            return "status"
        return "cancel" if cancel.done() else "timeout"
