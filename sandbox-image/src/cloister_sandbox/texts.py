"""Text files for programs: lines, replacements, and the change as a unified diff."""

import codecs
import difflib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .entries import etag

MAX_EDITED = 64 * 1024 * 1024
"""Characters; a small edit of a small file must not use up the pod's memory."""
MAX_DIFF = 65_536
_MAX_COMPARED = 1000
"""Changed lines that are compared with each other; more are shown as one block."""
_CONTEXT = 3
_CHUNK = 262_144


class NotFoundInText(Exception):
    """The string to replace does not occur."""


class NotUnique(Exception):
    """It occurs more than once; `count` says how often."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class ResultTooLarge(Exception):
    """The result would have more than MAX_EDITED characters."""


def replace(text: str, old: str, new: str, *, everywhere: bool) -> tuple[str, int]:
    """The text with `old` replaced, and how often; without `everywhere` it must occur once.

    Raises NotFoundInText, NotUnique and ResultTooLarge.
    """
    count = text.count(old)
    if count == 0:
        raise NotFoundInText
    if count > 1 and not everywhere:
        raise NotUnique(count)
    if len(text) + count * len(new) > MAX_EDITED:
        raise ResultTooLarge
    return text.replace(old, new), count


def has_crlf_of(text: str, old: str) -> bool:
    """Whether only the ends of lines keep `old` from occurring."""
    return "\r\n" in text and "\n" in old and old.replace("\n", "\r\n") in text


@dataclass(frozen=True)
class Lines:
    """A part of a text file, and what is known of the whole."""

    data: bytes
    total: int
    size: int
    etag: str
    truncated: bool


def read_lines(fd: int, first: int, last: int, bound: int) -> Lines:
    """Lines `first` to `last`, 1-based and inclusive, with their ends; 0 is the file's last line.

    At most `bound` bytes of them, in memory that does not grow with the file. Raises OSError.
    """
    info = os.fstat(fd)
    first = max(first, 1)
    to_skip = first - 1
    to_keep = last - first + 1 if last else sys.maxsize
    kept = bytearray()
    wanted = size = newlines = 0
    open_line = False
    while data := os.pread(fd, _CHUNK, size):
        size += len(data)
        newlines += data.count(b"\n")
        open_line = not data.endswith(b"\n")
        begin = _after(data, 0, to_skip)
        to_skip -= data.count(b"\n", 0, begin)
        if to_skip == 0 and to_keep > 0:
            end = _after(data, begin, to_keep)
            to_keep -= data.count(b"\n", begin, end)
            wanted += end - begin
            kept += data[begin : min(end, begin + bound - len(kept))]
    return Lines(bytes(kept), newlines + open_line, size, etag(info), wanted > len(kept))


def _after(data: bytes, at: int, count: int) -> int:
    """The position behind the count-th newline from `at`, or the end."""
    if data.count(b"\n", at) < count:
        return len(data)
    for _ in range(count):
        at = data.index(b"\n", at) + 1
    return at


def unified_diff(name: str, before: str, after: str) -> str:
    """The change between two texts, in bounded time and at most about MAX_DIFF characters."""
    if before == after:
        return ""
    old, new = (list(io.StringIO(each, newline="\n")) for each in (before, after))
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    tail = 0
    while tail < min(len(old), len(new)) - same and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    head = max(same - _CONTEXT, 0)
    rest = max(tail - _CONTEXT, 0)
    old, new = old[head : len(old) - rest], new[head : len(new) - rest]
    if max(len(old), len(new)) <= _MAX_COMPARED:
        matcher = difflib.SequenceMatcher(None, old, new)
        groups = list(matcher.get_grouped_opcodes(_CONTEXT))
    else:
        lead, end = same - head, tail - rest
        groups = [
            [
                ("equal", 0, lead, 0, lead),
                ("replace", lead, len(old) - end, lead, len(new) - end),
                ("equal", len(old) - end, len(old), len(new) - end, len(new)),
            ]
        ]
    out = [f"--- a/{name}\n", f"+++ b/{name}\n"]
    for group in groups:
        out += _hunk(group, old, new, head)
    return _cut(out)


def _hunk(
    group: Sequence[tuple[str, int, int, int, int]], old: list[str], new: list[str], head: int
) -> list[str]:
    first, final = group[0], group[-1]
    ranges = ((first[1], final[2]), (first[3], final[4]))
    (old_at, old_count), (new_at, new_count) = (
        (head + low + (1 if high > low else 0), high - low) for low, high in ranges
    )
    out = [f"@@ -{old_at},{old_count} +{new_at},{new_count} @@\n"]
    for tag, low, high, new_low, new_high in group:
        if tag == "equal":
            out += [_line(" ", each) for each in old[low:high]]
        else:
            out += [_line("-", each) for each in old[low:high]]
            out += [_line("+", each) for each in new[new_low:new_high]]
    return out


def _line(sign: str, text: str) -> str:
    if text.endswith("\n"):
        return sign + text
    return f"{sign}{text}\n\\ No newline at end of file\n"


def _cut(lines: list[str]) -> str:
    size = 0
    for position, line in enumerate(lines):
        size += len(line)
        if size > MAX_DIFF:
            return "".join(lines[:position]) + f"[diff cut at {MAX_DIFF} characters]\n"
    return "".join(lines)


def decoded(data: bytes, *, cut: bool) -> str | None:
    """The text, None where it is not UTF-8; with `cut` its last character may be incomplete."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(data, final=not cut)
    except UnicodeDecodeError:
        return None
