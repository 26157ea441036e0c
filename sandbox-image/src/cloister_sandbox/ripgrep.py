"""Running ripgrep: one search, its output as it comes, ended in time.

The one engine of the grep tool and of Files.Grep.
"""

import contextlib
import os
import secrets
import selectors
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import BinaryIO

from .births import BIRTHS
from .inlet import waiting
from .kin import begin_tree, forget_tree
from .lacking import EXHAUSTED
from .polling import readable_now
from .spawn import nothing, spawn, yield_to_server

_COMPLAINT = 4096
_LOOK = 0.05
"""Seconds between looks at whether anybody still wants the result."""
_READ = 65_536
_WITHOUT_END = 1 << 62
"""Bytes of a pipe into which a search may still print."""


class NotInstalled(Exception):
    """The image has no ripgrep."""


class BadArgument(Exception):
    """An argument has a null byte."""


class Search:
    """One search. `ended` says why it was ended early: "late", "stopped", or empty."""

    def __init__(
        self, arguments: Sequence[str], cwd: str, env: Mapping[str, str], seconds: float
    ) -> None:
        """Start it; `arguments` follow `rg --no-config`.

        Raises NotInstalled, BadArgument, and OSError where descriptors, processes or memory lack.
        """
        self.ended = ""
        self._complaint = b""
        self.complained_more = False
        """Whether `complaint` is not all: one is longer where a path is."""
        self._deadline = time.monotonic() + seconds
        # What tools make it start is no living tree's when it is over, and ends with the next one.
        self._mark = f"rg-{secrets.token_hex(4)}"
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            self._stdout, stdout = _pipe(theirs)
            ours.enter_context(self._stdout)
            self._stderr, stderr = _pipe(theirs)
            ours.enter_context(self._stderr)
            try:
                streams = (nothing(), stdout, stderr)
                with BIRTHS.one():
                    self._pid = spawn(["rg", "--no-config", *arguments], cwd, env, streams)
                    begin_tree(self._pid, self._mark)
            except OSError as error:
                if error.errno in EXHAUSTED:
                    raise
                raise NotInstalled from None
            except ValueError:
                raise BadArgument from None
            try:
                self._life = _life(self._pid)
            except OSError:
                self._kill()
                forget_tree(self._mark)
                raise
            ours.pop_all()
        yield_to_server(self._pid)

    @property
    def complaint(self) -> str:
        """The beginning of what it complained about; whole once `output` is read to its end."""
        return self._complaint.decode("utf-8", errors="replace").strip()

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self._deadline

    def output(self, stopped: Callable[[], bool]) -> Generator[bytes, None, None]:
        """What it prints, in pieces; an empty piece says that nothing came for a moment.

        Both pipes are read at once: complaints about thousands of files must not block the search.
        What is in them when it has ended is all: a tool can open them, too, and keep them open.
        The search is ended when the reader stops.
        """
        try:
            yield from self._printed(stopped)
        finally:
            self._end()

    def _printed(self, stopped: Callable[[], bool]) -> Generator[bytes, None, None]:
        pipes = {each.fileno(): _WITHOUT_END for each in (self._stdout, self._stderr)}
        with self._stdout, self._stderr, selectors.PollSelector() as selector:
            for each in (self._stdout, self._stderr, self._life):
                selector.register(each, selectors.EVENT_READ)
            while any(left > 0 for left in pipes.values()):
                ready = selector.select(timeout=_LOOK)
                if not ready:
                    if not self._pid:
                        break  # a tool took what was left
                    yield b""
                for key, _ in ready:
                    if key.fileobj is self._life:
                        selector.unregister(self._life)
                        pipes = {fd: waiting(fd) for fd in pipes}
                        self._pid = 0
                        break
                    try:
                        data = os.read(key.fd, _READ)
                    except BlockingIOError:  # a tool opened the pipe, too, and was quicker
                        if not self._pid:
                            pipes[key.fd] = 0
                        continue
                    pipes[key.fd] -= len(data)
                    if not data:
                        del pipes[key.fd]
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self._stdout:
                        yield data
                    else:
                        room = _COMPLAINT - len(self._complaint)
                        self._complaint += data[:room]
                        self.complained_more |= len(data) > room
                if stopped():
                    self.ended = "stopped"
                elif self.late:
                    self.ended = "late"
                if self.ended:
                    return
            if not pipes:
                self._pid = 0

    def _end(self) -> None:
        # Who reads may have taken minutes since the last look: by now its number may be another's.
        with self._life:
            if self._pid and not readable_now(self._life.fileno()):
                self._kill()
        forget_tree(self._mark)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


def _life(pid: int) -> BinaryIO:
    """Becomes readable when a process ends; never, where the kernel does not tell."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        # It has ended already: the end of a pipe says so as well.
        fd, other = os.pipe()
        os.close(other)
    except OSError:
        fd = os.eventfd(0)
    return open(fd, "rb", buffering=0)  # noqa: PTH123 - a descriptor


def _pipe(theirs: contextlib.ExitStack) -> tuple[BinaryIO, int]:
    """A pipe, as a file to read from and a descriptor that is closed with `theirs`."""
    ours, other = os.pipe()
    os.set_blocking(ours, False)
    theirs.callback(os.close, other)
    return open(ours, "rb", buffering=0), other  # noqa: PTH123 - a descriptor
