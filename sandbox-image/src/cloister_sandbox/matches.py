"""What ripgrep printed, as far as the files that may be read bear it out.

ripgrep walks by path, as any command does: a directory that is swapped for a link while it runs
leads it outside the permitted directories. So nothing that it says about a file is passed on before
that file, opened without following any link, is seen to hold that very text at that very place.
"""

import base64
import codecs
import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .lacking import passing_over
from .paths import Roots

_MAX_EVENT = 4 * 1024 * 1024
"""Bytes of one of ripgrep's events; what is longer is counted and left out."""
_MATCHES = b',"submatches":['
_LINES = ("match", "context")
_MAX_NUMBER = 2**62
"""No file has so many bytes, or lines."""
_READ = 65_536
_ANYTHING = 65_536
"""Bytes of an event that is read whatever it is. Of a longer one that tools put into the pipe the
reader might make a million objects, and everything else would wait."""
_BEGIN = re.compile(
    rb"""\{"type":"(match|context)","data":\{"path":(\{"(?:text|bytes)":"(?:[^"\\]|\\.){0,32768}"\})"""
    rb""","lines":\{"(text|bytes)":\""""
)
_END = re.compile(rb"""\},"line_number":(null|[0-9]{1,19}),"absolute_offset":([0-9]{1,19})\}\}""")
"""How a long event begins and ends: between is the line, and nothing else."""
_ENDS_WITHIN = 100
_MORE = "paths that are too long, or too many to be named, were not searched"
_ENCODINGS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


@dataclass(frozen=True)
class Line:
    """One line of a file, confirmed: with its end, and its offset in what ripgrep searched."""

    path: str
    number: int
    text: bytes
    offset: int
    is_context: bool = False


@dataclass(frozen=True)
class _Event:
    """One of ripgrep's, as far as it is wanted."""

    kind: str
    path: bytes
    text: bytes = b""
    number: int = 0
    offset: int = -1
    """Of a line, or of the null byte at which a file was left; negative where there is none."""


@dataclass(frozen=True)
class Binary:
    """A file with confirmed lines was not searched beyond a null byte, which is there."""

    path: str
    offset: int


class Matches:
    """Turns the output of `rg --json` into confirmed lines. A context manager: it holds a file."""

    def __init__(self, roots: Roots, root: str, base: str, late: Callable[[], bool]) -> None:
        """`root` is the resolved path that is searched, `base` what ripgrep's paths start from.

        `late` tells that nobody wants the result any more.
        """
        self.too_long = 0
        """Lines that were left out for their length."""
        self.unconfirmed = 0
        """Lines that were left out because their file does not hold them, or may not be read."""
        self.files = 0
        """Files with confirmed lines."""
        self.complete = False
        """Whether ripgrep came to its end; who is killed does not say so."""
        self._roots, self._root, self._base, self._late = roots, root, base, late
        self._events = _Events()
        self._content: _Content | None = None
        self._path = ""
        """Of the file whose lines come."""
        self._confirmed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def feed(self, data: bytes) -> Iterator[Line | Binary]:
        """Take some more of the output; raises OSError without a descriptor to confirm it."""
        for event in self._events.feed(data):
            if event.kind == "summary":
                self.complete = True
                continue
            path = self._absolute(os.fsdecode(event.path))
            if event.kind == "begin":
                self._open(path)
            elif event.kind in _LINES:
                if path != self._path or not self._holds(event.offset, event.text):
                    self.unconfirmed += 1
                    continue
                self.files += not self._confirmed
                self._confirmed = True
                is_context = event.kind == "context"
                yield Line(path, event.number, event.text, event.offset, is_context)
            elif event.kind == "end":
                if event.offset >= 0 and self._confirmed and self._holds(event.offset, b"\0"):
                    yield Binary(self._path, event.offset)
                self._close()
        self.too_long = self._events.too_long

    def complaints(self, text: str, *, more: bool) -> list[str]:
        """Those of ripgrep's complaints that are about files which may be seen.

        Where there are `more`, the last is not whole: that there are is all that is told of it.
        """
        lines = text.splitlines()
        said = [each for each in (lines[:-1] if more else lines) if self._may_say(each)]
        return [*said, _MORE] if more else said

    def warnings(self) -> list[str]:
        """Sentences on what was left out, of a search that nobody ended early."""
        said = []
        if not self.complete:
            said.append("something ended the search: this is what it had found by then")
        if self.too_long:
            said.append(f"{self.too_long} lines were too long to be shown")
        if self.unconfirmed:
            said.append(
                f"{self.unconfirmed} lines were left out: their files changed during the search"
            )
        return said

    def _may_say(self, complaint: str) -> bool:
        complaint = complaint.removeprefix("rg: ")
        if not complaint.startswith(("./", self._base)) or complaint.startswith(f"{self._root}:"):
            return True
        pieces = complaint.split(": ")
        for count in range(1, len(pieces)):
            path = self._absolute(": ".join(pieces[:count]))
            with (
                contextlib.suppress(OSError, ValueError),
                self._roots.parent(path) as (above, name),
            ):
                os.stat(name, dir_fd=above, follow_symlinks=False)
                return True
        return False

    def _holds(self, offset: int, text: bytes) -> bool:
        return self._content is not None and self._content.holds(offset, text)

    def _absolute(self, path: str) -> str:
        return os.path.normpath(Path(self._base) / path)

    def _open(self, path: str) -> None:
        self._close()
        self._path, self._confirmed = path, False
        with passing_over():
            fd = self._roots.open(path, os.O_RDONLY)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    self._content = _Content(fd, self._late)
            finally:
                if self._content is None:
                    os.close(fd)

    def _close(self) -> None:
        if self._content is not None:
            self._content.close()
            self._content = None


class _Content:
    """A file's bytes at offsets, as ripgrep counts them: after a mark at its beginning, as UTF-8.

    What is UTF-16 is read forward, once: offsets must not go back there.
    """

    def __init__(self, fd: int, late: Callable[[], bool]) -> None:
        self._fd, self._late = fd, late
        start = os.pread(fd, 3, 0)
        self._skip = 3 if start == codecs.BOM_UTF8 else 0
        encoding = _ENCODINGS.get(start[:2])
        self._decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding else None
        self._held, self._held_from, self._read = bytearray(), 0, 2

    def close(self) -> None:
        os.close(self._fd)

    def holds(self, offset: int, text: bytes) -> bool:
        """Whether this text is at this offset."""
        try:
            if self._decoder is not None:
                return self._decoded(self._decoder, offset, len(text)) == text
            for start in {offset, offset + self._skip}:
                found = os.pread(self._fd, len(text), start)
                # In a file that is named to it ripgrep takes null bytes for ends of lines.
                if text in (found, found.replace(b"\0", b"\n")):
                    return True
        except OSError:
            pass
        return False

    def _decoded(self, decoder: codecs.IncrementalDecoder, offset: int, count: int) -> bytes:
        while self._held_from + len(self._held) < offset + count and not self._late():
            data = os.pread(self._fd, _READ, self._read)
            self._read += len(data)
            self._held += decoder.decode(data, not data).encode()
            self._forget(offset)
            if not data:
                break
        self._forget(offset)
        return bytes(self._held[:count]) if self._held_from == offset else b""

    def _forget(self, before: int) -> None:
        passed = min(max(before - self._held_from, 0), len(self._held))
        del self._held[:passed]
        self._held_from += passed


class _Events:
    """Splits output into ripgrep's events, one a line.

    Where in the line the matches are is not wanted, and takes many times the line itself: it comes
    last in an event, and is passed over. Only there can these bytes be unescaped.
    """

    def __init__(self) -> None:
        self.too_long = 0
        self._held = bytearray()
        self._seen = 0
        self._passing_over = False

    def feed(self, data: bytes) -> Iterator[_Event]:
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._take(piece)
            event = _understood(self._held) if self._held else None
            if event is not None:
                yield event
            self._held, self._seen, self._passing_over = bytearray(), 0, False
        self._take(rest)

    def _take(self, piece: bytes) -> None:
        if self._passing_over:
            return
        self._held += piece
        at = self._held.find(_MATCHES, max(self._seen - len(_MATCHES), 0))
        self._seen = len(self._held)
        if at >= 0:
            self._held[at:] = b"}}"
            self._passing_over = True
        elif len(self._held) > _MAX_EVENT:
            self.too_long += 1
            self._held.clear()
            self._passing_over = True


def _understood(line: bytearray) -> _Event | None:
    """An event; None for what is not wanted, or what ripgrep does not print.

    Tools can write into its pipe, too.
    """
    if len(line) > _ANYTHING:
        return _long(bytes(line))
    try:
        event = json.loads(line)
        kind, data = event["type"], event["data"]
        if kind == "summary":
            return _Event(kind, b"")
        if kind not in ("begin", "end", *_LINES) or b"\0" in (path := _bytes(data["path"])):
            return None
        if kind in _LINES:
            numbers = data["line_number"] or 0, data["absolute_offset"]
            if all(type(each) is int and 0 <= each < _MAX_NUMBER for each in numbers):
                return _Event(kind, path, _bytes(data["lines"]), *numbers)
            return None
        stopped_at = data["binary_offset"] if kind == "end" else None
        if type(stopped_at) is int and 0 <= stopped_at < _MAX_NUMBER:
            return _Event(kind, path, offset=stopped_at)
        return _Event(kind, path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _long(event: bytes) -> _Event | None:
    """A long line's event, which is read as nothing but that."""
    begin = _BEGIN.match(event)
    end = _END.search(event, len(event) - _ENDS_WITHIN)
    if begin is None or end is None or end.end() != len(event):
        return None
    try:
        path, line = _bytes(json.loads(begin[2])), event[begin.end() : end.start()]
        if begin[3] == b"bytes":
            text = base64.b64decode(line.removesuffix(b'"'), validate=True)
        else:
            # Behind its first quote there is a string, or nothing that is read.
            text = json.loads(b'"' + line).encode()
        number = 0 if end[1] == b"null" else int(end[1])
        offset = int(end[2])
    except ValueError:
        return None
    if b"\0" in path or max(number, offset) >= _MAX_NUMBER:
        return None
    return _Event(begin[1].decode(), path, text, number, offset)


def _bytes(value: dict[str, str]) -> bytes:
    return value["text"].encode() if "text" in value else base64.b64decode(value["bytes"])
