"""What a command prints: read from its FIFO as it comes, and the end of it kept."""

import re
from collections.abc import Callable

from .hands import Hands
from .inlet import Inlet
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


class Output(Inlet):
    """Reads a command's FIFO until every process that holds it is gone.

    After the command's result is taken, what background jobs still print is read and dropped, so
    that they never block on a full pipe.
    """

    def __init__(self, fd: int, hands: Hands, tail: Tail | None = None) -> None:
        super().__init__(fd, hands)
        self.tail: Tail | None = tail or Tail()

    async def finish(self) -> Tail:
        """Take what the command printed; foreground writes happened before its status."""
        await self.flush()
        tail, self.tail = self.tail or Tail(), None
        self.drain()
        return tail

    def took(self, data: bytes) -> None:
        tail = self.tail
        if tail is not None:
            tail.add(data)
            if tail.file is not None:
                tail.file.pause, tail.file.resume = self.pause, self.go_on
