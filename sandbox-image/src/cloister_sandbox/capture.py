"""What a command prints: read from its FIFO as it comes, and the end of it kept."""

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import re
import stat
import termios
from collections.abc import Callable
from dataclasses import dataclass

from .overflow import Overflow

KEEP_BYTES = 102_400
"""Of a command's output, the last so many bytes are kept (agent_toolset_20260401)."""
_CHUNK = 65_536
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
"""What moves a cursor, colours text or sets a title: nothing that a model can read."""
_CONTINUED = 3
"""Bytes of a character behind its first, at most."""


def readable(text: str) -> str:
    """What a terminal would show in the end: no control sequences, no overwritten progress."""
    text = _CONTROL.sub("", text)
    # Line by line, and no expression: one that looks for ends of lines takes the square of the time
    # for a long line, and every call would wait.
    return "\n".join(map(_last_printed, text.split("\n"))) if "\r" in text else text


def _last_printed(line: str) -> str:
    """A line without the parts that a later one is printed over, as progress bars do."""
    body = line.rstrip("\r")
    return body[body.rfind("\r") + 1 :] + line[len(body) :]


class Tail:
    """The end of a stream of bytes, and how much there was.

    With `overflow`, which is asked for a file when there is more than is kept, everything goes to
    that file.
    """

    def __init__(
        self, keep: int = KEEP_BYTES, overflow: Callable[[], Overflow] | None = None
    ) -> None:
        self._keep = keep
        self._overflow = overflow
        self._parts: list[bytes] = []
        self._held = 0
        self._filed = 0
        """Parts that the file has."""
        self.total = 0
        self.file: Overflow | None = None

    def add(self, data: bytes) -> None:
        """Append bytes, forgetting the oldest beyond the bound."""
        self.total += len(data)
        self._held += len(data)
        self._parts.append(data)
        if self._held > 2 * self._keep + _CHUNK:
            self._shrink()

    async def filed(self) -> Overflow | None:
        """The file with everything, or its first bytes; None when nothing is left out or it failed.

        Nothing may be added after.
        """
        if self.omitted:
            self._shrink()
        if self.file is not None:
            await self.file.written()
        return self.file if self.file is not None and self.file.size else None

    @property
    def omitted(self) -> int:
        """Bytes that were forgotten."""
        return max(0, self.total - self._keep)

    def text(self) -> str:
        """What was kept, as text: invalid UTF-8 is replaced, a cut character is dropped."""
        self._shrink()
        kept = b"".join(self._parts)
        if self.omitted:
            cut = 0
            while cut < min(_CONTINUED, len(kept)) and kept[cut] & 0xC0 == 0x80:
                cut += 1
            kept = kept[cut:]
        return kept.decode("utf-8", errors="replace")

    def _shrink(self) -> None:
        if self._overflow is not None and self.omitted:
            if self.file is None:
                self.file = self._overflow()
            for each in self._parts[self._filed :]:
                self.file.add(each)
            self._filed = 1
        kept = b"".join(self._parts)[-self._keep :]
        self._parts, self._held = [kept], len(kept)


@dataclass
class Place:
    """Where a FIFO is, as long as its directory is open."""

    name: str
    directory: int = -1
    """Its descriptor; -1 when it was closed."""


class Output:
    """Reads a command's FIFO until every process that holds it is gone.

    After the command's result is taken, what background jobs still print is read and dropped, so
    that they never block on a full pipe.
    """

    def __init__(self, place: Place, tail: Tail | None = None) -> None:
        """Make the FIFO; raises OSError."""
        os.mkfifo(place.name, 0o600, dir_fd=place.directory)
        self._place = place
        # A tool may have put something else there since: a link to what only the server may read.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(place.name, flags, dir_fd=place.directory)
        if not stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place.name)
        self._loop = asyncio.get_running_loop()
        self._watched = self._paused = False
        self.tail: Tail | None = tail or Tail()

    @property
    def held(self) -> bool:
        """Whether a process may still print."""
        return self._fd >= 0

    def watch(self) -> None:
        """Read from now on whenever there is something, unless it is paused.

        Where that cannot be, because a tool has taken all that this user may watch, nothing is read
        until it is called again.
        """
        if self.held and not self._watched and not self._paused:
            with contextlib.suppress(OSError):
                self._loop.add_reader(self._fd, self._read)
                self._watched = True

    def resume(self) -> None:
        """Read on after a pause."""
        self._paused = False
        self.watch()

    def pause(self) -> None:
        """Let the command wait until `resume` is called."""
        self._paused = True
        if self.held and self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def finish(self) -> Tail:
        """Take what the command printed; foreground writes happened before its status.

        They are in the pipe by now, so that what comes later, as from a job that prints without
        end, is not waited for.
        """
        left = self._waiting()
        # Once more than there was to read: that shows the end, where it has come.
        while self.held and (count := self._read()) and left > 0:
            left -= count
        tail, self.tail = self.tail or Tail(), None
        self.resume()
        if self.held and not self._watched:
            # Who goes on printing learns that nobody reads, instead of waiting for ever.
            self.close()
        name, directory = self._place.name, self._place.directory
        with contextlib.suppress(OSError):
            # What else a tool put there may be as large as it likes, and is found by the next.
            if stat.S_ISFIFO(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=directory)
        return tail

    def close(self) -> None:
        """Stop reading."""
        if self.held:
            if self._watched:
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _waiting(self) -> int:
        """Bytes in the pipe."""
        count = array.array("i", [0])
        if self.held:
            fcntl.ioctl(self._fd, termios.FIONREAD, count)
        return count[0]

    def _read(self) -> int:
        """Read once; returns how many bytes there were."""
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return 0
        if data:
            tail = self.tail
            if tail is not None:
                tail.add(data)
                if tail.file is not None:
                    tail.file.pause, tail.file.resume = self.pause, self.resume
        else:
            # End of file: all writers are gone. Before the first one came nobody reads.
            self.close()
        return len(data)
