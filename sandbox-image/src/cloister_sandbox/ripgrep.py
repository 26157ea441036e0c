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
from .kin import begin_tree, forget_tree
from .spawn import nothing, spawn, yield_to_server

_COMPLAINT = 4096
_LOOK = 0.05
"""Seconds between looks at whether anybody still wants the result."""
_READ = 65_536


class NotInstalled(Exception):
    """The image has no ripgrep."""


class BadArgument(Exception):
    """An argument has a null byte."""


class Search:
    """One search. `ended` says why it was ended early: "late", "stopped", or empty."""

    def __init__(
        self, arguments: Sequence[str], cwd: str, env: Mapping[str, str], seconds: float
    ) -> None:
        """Start it; `arguments` follow `rg --no-config`. Raises NotInstalled and BadArgument."""
        self.ended = ""
        self.complaint = b""
        """The beginning of what it complained about; whole once `output` is read to its end."""
        self._deadline = time.monotonic() + seconds
        # What tools make it start is no living tree's when it is over, and ends with the next one.
        self._mark = f"rg-{secrets.token_hex(4)}"
        with contextlib.ExitStack() as theirs:
            self._stdout, stdout = _pipe(theirs)
            self._stderr, stderr = _pipe(theirs)
            try:
                streams = (nothing(), stdout, stderr)
                with BIRTHS.one():
                    self._pid = spawn(["rg", "--no-config", *arguments], cwd, env, streams)
                    begin_tree(self._pid, self._mark)
            except OSError:
                raise NotInstalled from None
            except ValueError:
                raise BadArgument from None
        yield_to_server(self._pid)

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self._deadline

    def output(self, stopped: Callable[[], bool]) -> Generator[bytes, None, None]:
        """What it prints, in pieces; an empty piece says that nothing came for a moment.

        Both pipes are read at once: complaints about thousands of files must not block the search.
        The search is ended when the reader stops.
        """
        with selectors.DefaultSelector() as selector, self._stdout, self._stderr:
            for pipe in (self._stdout, self._stderr):
                selector.register(pipe, selectors.EVENT_READ)
            try:
                while selector.get_map():
                    ready = selector.select(timeout=_LOOK)
                    if not ready:
                        yield b""
                    for key, _ in ready:
                        try:
                            data = os.read(key.fd, _READ)
                        except BlockingIOError:  # a tool opened the pipe, too, and was quicker
                            continue
                        if not data:
                            selector.unregister(key.fileobj)
                        elif key.fileobj is self._stdout:
                            yield data
                        else:
                            self.complaint += data[: _COMPLAINT - len(self.complaint)]
                    if stopped():
                        self.ended = "stopped"
                    elif self.late:
                        self.ended = "late"
                    if self.ended:
                        return
            finally:
                if selector.get_map():
                    self._kill()
                forget_tree(self._mark)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


def _pipe(theirs: contextlib.ExitStack) -> tuple[BinaryIO, int]:
    """A pipe, as a file to read from and a descriptor that is closed with `theirs`."""
    ours, other = os.pipe()
    os.set_blocking(ours, False)
    theirs.callback(os.close, other)
    return open(ours, "rb", buffering=0), other  # noqa: PTH123 - a descriptor
