"""One persistent bash, and the framing that tells where a command's output ends.

A command is written to a file and sourced; its status comes back on a pipe of its own, its output
through a FIFO of its own. So a syntax error, an unterminated quote or `exec >/dev/null` spoils one
command and not the shell, a background job's later output reaches nobody else's result, and nothing
a command prints can be mistaken for its status.
"""

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .processes import MARK, Reaper, kill_tree, spawn

KEEP_BYTES = 102_400
"""Of a command's output, the last so many bytes are kept (agent_toolset_20260401)."""
_CHUNK = 65_536
_CSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Tail:
    """The end of a stream of bytes, and how much there was."""

    def __init__(self, keep: int = KEEP_BYTES) -> None:
        self._keep = keep
        self._parts: list[bytes] = []
        self._held = 0
        self.total = 0

    def add(self, data: bytes) -> None:
        """Append bytes, forgetting the oldest beyond the bound."""
        self.total += len(data)
        self._held += len(data)
        self._parts.append(data)
        if self._held > 2 * self._keep + _CHUNK:
            self._shrink()

    @property
    def omitted(self) -> int:
        """Bytes that were forgotten."""
        return max(0, self.total - self._keep)

    def text(self) -> str:
        """What was kept, as text: invalid UTF-8 is replaced, a cut character is dropped."""
        self._shrink()
        kept = b"".join(self._parts)
        if self.omitted:
            while kept and kept[0] & 0xC0 == 0x80:
                kept = kept[1:]
        return kept.decode("utf-8", errors="replace")

    def _shrink(self) -> None:
        kept = b"".join(self._parts)[-self._keep :]
        self._parts, self._held = [kept], len(kept)


class Output:
    """Reads a command's FIFO until every process that holds it is gone.

    After the command's result is taken, what background jobs still print is read and dropped, so
    that they never block on a full pipe.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)
        self.tail: Tail | None = Tail()

    def finish(self) -> Tail:
        """Take what the command printed; foreground writes happened before its status."""
        self.drain()
        tail, self.tail = self.tail or Tail(), None
        with contextlib.suppress(OSError):
            self._path.unlink()
        return tail

    def drain(self) -> None:
        """Read all that is there now."""
        while self._fd >= 0 and self._read():
            pass

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> bool:
        """Read once; returns whether there may be more at once."""
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            if self.tail is not None:
                self.tail.add(data)
            return True
        # End of file is only seen after a writer came and all of them are gone.
        self.close()
        return False


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


class ShellError(Exception):
    """bash could not be started; the message says why."""


class Shell:
    """A persistent bash of one context. Commands run one at a time; the caller serialises them."""

    def __init__(self, name: str, state_dir: Path, reaper: Reaper) -> None:
        self._mark = f"{name}-{secrets.token_hex(8)}"
        self._dir = state_dir
        self._reaper = reaper
        self._numbers = itertools.count()
        self._pid = 0
        self._exit: asyncio.Future[int] | None = None
        self._stdin = -1
        self._status = -1
        self._outputs: list[Output] = []
        self.cwd = ""
        self.output: Output | None = None
        """Of the running command."""

    @property
    def alive(self) -> bool:
        """Whether there is a shell to run the next command in."""
        return self._exit is not None and not self._exit.done()

    async def open(self, cwd: str, env: Mapping[str, str]) -> None:
        """Start bash in `cwd` with exactly these variables; raises ShellError."""
        await self.close()
        stdin_read, stdin_write = os.pipe()
        status_read, status_write = os.pipe()
        try:
            self._pid = await spawn(
                ["/bin/bash", "--noprofile", "--norc"],
                cwd=cwd,
                env={**env, MARK: self._mark},
                stdin=stdin_read,
                pass_fds=[status_write],
            )
        except OSError as error:
            for fd in (stdin_write, status_read):
                os.close(fd)
            raise ShellError(f"bash cannot be started in {cwd}: {error.strerror}") from None
        finally:
            os.close(stdin_read)
            os.close(status_write)
        os.set_blocking(status_read, False)
        os.set_blocking(stdin_write, False)
        self._stdin, self._status = stdin_write, status_read
        self._exit = self._reaper.wait(self._pid)
        self.cwd = cwd
        self._send(f"exec 200>&{status_write} {status_write}>&-\n")

    async def run(self, command: str, timeout: float, cancel: asyncio.Event) -> Finished:
        """Run a command; `timeout` is in seconds.

        A command that runs out of time, or is cancelled, is ended with the shell and everything it
        started, and what it printed until then is kept.
        """
        began = time.monotonic()
        number = next(self._numbers)
        nonce = secrets.token_hex(8)
        script = self._dir / f"{self._mark}.{number}"
        await asyncio.to_thread(script.write_text, command + "\n", errors="surrogatepass")
        fifo = self._dir / f"{self._mark}.{number}.out"
        output = self.output = Output(fifo)
        self._outputs = [each for each in self._outputs if each._fd >= 0]  # noqa: SLF001
        self._outputs.append(output)
        quoted, into = shlex.quote(str(script)), shlex.quote(str(fifo))
        self._send(
            f"builtin source {quoted} </dev/null >{into} 2>&1 200>&-\n"
            f'{{ builtin printf \'%s %d %s\\0\' {nonce} "$?" "$PWD" >&200; }} 2>/dev/null\n'
        )
        try:
            status, reason = await self._await_status(timeout, cancel)
            if status is None and reason:
                await kill_tree(self._pid, self._mark)
            code = 0
            if status is None:
                code = await self._exit if self._exit else 1
                code = 128 - code if code < 0 else code
            else:
                found, number_text, cwd = status.split(" ", 2)
                if found == nonce:
                    code, self.cwd = int(number_text), cwd
                else:
                    await kill_tree(self._pid, self._mark)
                    code, status = 1, None
            tail = output.finish()
        finally:
            self.output = None
            script.unlink(missing_ok=True)
        return Finished(
            output=_CSI.sub("", tail.text()),
            total_bytes=tail.total,
            omitted_bytes=tail.omitted,
            code=code,
            cwd=self.cwd,
            wall=time.monotonic() - began,
            timed_out=reason == "timeout",
            cancelled=reason == "cancel",
            shell_lost=status is None,
        )

    async def close(self) -> None:
        """End the shell and everything that was started from it."""
        if self._pid:
            await kill_tree(self._pid, self._mark)
            if self._exit is not None:
                await self._exit
        for output in self._outputs:
            output.close()
        self._outputs.clear()
        for fd in (self._stdin, self._status):
            if fd >= 0:
                os.close(fd)
        self._pid, self._exit, self._stdin, self._status = 0, None, -1, -1

    def _send(self, line: str) -> None:
        # A pipe takes 64 KiB at once; the lines sent are far shorter, and bash reads each one
        # before it runs what the line names.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._stdin, line.encode())

    async def _await_status(
        self, timeout: float, cancel: asyncio.Event
    ) -> tuple[str | None, str | None]:
        """The status line, or None and why there is none: timeout, cancel, or the shell's end."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str | None] = loop.create_future()
        received = bytearray()

        def readable() -> None:
            try:
                data = os.read(self._status, 8192)
            except BlockingIOError:
                return
            received.extend(data)
            if not data or received.endswith(b"\0"):
                loop.remove_reader(self._status)
                if not done.done():
                    text = received[:-1].decode(errors="surrogateescape") if data else None
                    done.set_result(text)

        loop.add_reader(self._status, readable)
        cancelled = loop.create_task(cancel.wait())
        cancelled.add_done_callback(lambda _: done.done() or done.cancel())
        try:
            await asyncio.wait([done], timeout=timeout)
        finally:
            loop.remove_reader(self._status)
            cancelled.cancel()
        if done.done() and not done.cancelled():
            return done.result(), None
        return None, "cancel" if cancel.is_set() else "timeout"
