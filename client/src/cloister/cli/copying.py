"""cloister cp: what it copies, and how far it is."""

import argparse
import re
import shutil
import sys
import time
from collections import deque
from typing import TextIO

from .._errors import LocalFileError
from .._sync_client import Client
from .output import visible

_REMOTE = re.compile(r"([a-z0-9][a-z0-9.-]*):(.*)", re.DOTALL)
_EVERY_SECONDS = 0.1
_WINDOW_SECONDS = 5.0
_UNIT = 1024
_MINUTE, _HOUR = 60, 3600
_CLEAR = "\r\x1b[K"


def copy(client: Client, arguments: argparse.Namespace) -> int:
    """cloister cp"""
    source, target = _REMOTE.fullmatch(arguments.source), _REMOTE.fullmatch(arguments.target)
    if (source is None) == (target is None):
        raise LocalFileError("exactly one of SRC and DST must be NAME:PATH")
    bar = Bar(sys.stderr) if sys.stderr.isatty() and not arguments.quiet else None
    progress = bar.show if bar else None
    skip_same = not arguments.all
    try:
        if source is not None:
            session = client.get_session(source[1])
            left_out = session.download(
                source[2] or ".", arguments.target, progress=progress, skip_same=skip_same
            )
        elif target is not None:
            session = client.get_session(target[1])
            left_out = session.upload(
                arguments.source, target[2] or ".", progress=progress, skip_same=skip_same
            )
        if bar:
            bar.end()
    except KeyboardInterrupt:
        print("cloister: interrupted; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        if bar:
            bar.clear()
    for each in left_out:
        print(
            f"cloister: left out {visible(each)}: not a file or directory of its own",
            file=sys.stderr,
        )
    return 0


class Bar:
    """One line of a terminal. It is called by the thread that copies."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = self._shown = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque()
        self._first: int | None = None
        self._bytes = self._files = 0

    def show(self, done: int, total: int | None, files: int, name: str) -> None:
        """Draw it, ten times a second at most."""
        now = time.monotonic()
        if self._first is None:
            self._first = done
        self._bytes, self._files = done, files
        if now - self._shown < _EVERY_SECONDS:
            return
        self._shown = now
        self._samples.append((now, done))
        while now - self._samples[0][0] > _WINDOW_SECONDS:
            self._samples.popleft()
        then, before = self._samples[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        columns = shutil.get_terminal_size().columns
        self._write(line(done, total, files, rate, name)[: max(columns - 1, 1)])

    def end(self) -> None:
        """Say what was copied."""
        self.clear()
        seconds = time.monotonic() - self._began
        moved = self._bytes - (self._first or 0)
        counted = "1 file" if self._files == 1 else f"{self._files} files"
        print(f"{counted}, {size(moved)} copied in {seconds:.1f} s", file=self._stream)

    def clear(self) -> None:
        """Give the line back."""
        self._stream.write(_CLEAR)
        self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(_CLEAR + text)
        self._stream.flush()


def line(done: int, total: int | None, files: int, rate: float, name: str) -> str:
    """What the bar says; rate: bytes per second."""
    parts = [size(done)]
    if total:
        parts = [f"{min(done * 100 // total, 100):3}%", f"{size(done)} of {size(total)}"]
    if rate > 0:
        parts.append(f"{size(int(rate))}/s")
        if total and done < total:
            parts.append(f"{_duration(int((total - done) / rate))} left")
    parts.append(f"{files} files")
    return "  ".join([*parts, visible(name)]).rstrip()


def size(count: int) -> str:
    """Bytes for a person."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < _UNIT:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= _UNIT
    return f"{value:.1f} TiB"


def _duration(seconds: int) -> str:
    if seconds < _MINUTE:
        return f"{seconds}s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE}m{seconds % _MINUTE:02}s"
    return f"{seconds // _HOUR}h{seconds % _HOUR // _MINUTE:02}m"
