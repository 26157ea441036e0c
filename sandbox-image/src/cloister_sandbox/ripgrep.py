"""Running ripgrep: one search, its output as it comes, ended in time.

The one engine of the grep tool and of Files.Grep.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from .signals import unblocked

_COMPLAINT = 4096
_LOOK = 0.05
"""Seconds between looks at whether anybody still wants the result."""
_READ = 65_536
_BEFORE_SERVER = "500"


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
        try:
            with unblocked():
                self._process = subprocess.Popen(
                    ["rg", "--no-config", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=cwd,
                    env=dict(env),
                    start_new_session=True,
                )
        except OSError:
            raise NotInstalled from None
        except ValueError:
            raise BadArgument from None
        self._process.returncode = 0  # the reaper waits for it, the Popen object must not
        with contextlib.suppress(OSError):
            # When memory runs out, a search goes before the server.
            Path(f"/proc/{self._process.pid}/oom_score_adj").write_text(_BEFORE_SERVER)

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self._deadline

    def output(self, stopped: Callable[[], bool]) -> Generator[bytes, None, None]:
        """What it prints, in pieces; an empty piece says that nothing came for a moment.

        Both pipes are read at once: complaints about thousands of files must not block the search.
        The search is ended when the reader stops.
        """
        process = self._process
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as pipes:
            for pipe in filter(None, (process.stdout, process.stderr)):
                selector.register(pipes.enter_context(pipe), selectors.EVENT_READ)
            try:
                while selector.get_map():
                    ready = selector.select(timeout=_LOOK)
                    if not ready:
                        yield b""
                    for key, _ in ready:
                        data = os.read(key.fd, _READ)
                        if not data:
                            selector.unregister(key.fileobj)
                        elif key.fileobj is process.stdout:
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

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
