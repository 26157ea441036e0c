"""Text files for programs: lines, replacements, and the change as a unified diff."""

import codecs
import difflib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .entries import etag

MAX_EDITED = 16 * 1024 * 1024
"""Characters; a small edit of a small file must not use up the pod's memory."""
MAX_DIFF = 65_536
_MAX_COMPARED = 1000
"""Changed lines that are compared with each other; more are shown as one block."""
_MAX_CHANGED = 2 * 1024 * 1024
"""Characters between the first change and the last that are put into lines, each an object."""
_CONTEXT = 3
_Change: TypeAlias = tuple[str, int, int, int, int]
"""As difflib tells it: its kind, and what lines of the one text and of the other it is about."""
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


def read_lines(
    fd: int, first: int, last: int, bound: int, ended: Callable[[], bool] = lambda: False
) -> Lines:
    """Lines `first` to `last`, 1-based and inclusive, with their ends; 0 is the file's last line.

    At most `bound` bytes of them, in memory that does not grow with the file. Raises OSError, which
    is TimeoutError once `ended` says so.
    """
    info = os.fstat(fd)
    first = max(first, 1)
    to_skip = first - 1
    to_keep = last - first + 1 if last else sys.maxsize
    kept = bytearray()
    wanted = size = newlines = 0
    open_line = False
    while data := os.pread(fd, _CHUNK, size):
        if ended():
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
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
    titles = [f"--- a/{name}\n", f"+++ b/{name}\n"]
    head, old_text, new_text = _changed(before, after)
    if max(len(old_text), len(new_text)) > _MAX_CHANGED:
        return _cut([*titles, f"[diff left out: more than {_MAX_CHANGED} characters]\n"])
    old, new = (list(io.StringIO(each, newline="\n")) for each in (old_text, new_text))
    if max(len(old), len(new)) <= _MAX_COMPARED:
        matcher = difflib.SequenceMatcher(None, old, new)
        groups = list(matcher.get_grouped_opcodes(_CONTEXT))
    else:
        groups = [_one_block(old, new)]
    out = titles
    for group in groups:
        out += _hunk(group, old, new, head)
    return _cut(out)


def _changed(before: str, after: str) -> tuple[int, str, str]:
    """Whole lines of two texts, from a few before the first change to a few behind the last, and
    how many lines come before them.
    """
    first = before.rfind("\n", 0, _alike(before, after)) + 1
    # The ends that are alike, turned round, without what is alike at the beginning.
    count = _alike(before[first:][::-1], after[first:][::-1])
    last = before.find("\n", len(before) - count)
    left = len(before) - last - 1 if last >= 0 else 0
    for _ in range(_CONTEXT):
        first = before.rfind("\n", 0, max(first - 1, 0)) + 1
        left = _without_a_line(before, left)
    return before.count("\n", 0, first), _middle(before, first, left), _middle(after, first, left)


def _without_a_line(text: str, left: int) -> int:
    """How much is left behind one line more, at the end of a text."""
    end = text.find("\n", len(text) - left)
    return len(text) - end - 1 if end >= 0 else 0


def _middle(text: str, first: int, left: int) -> str:
    return text[first : len(text) - left]


def _alike(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    at, most = 0, min(len(one), len(other))
    while at < most and one[at : at + _CHUNK] == other[at : at + _CHUNK]:
        at += _CHUNK
    while at < most and one[at] == other[at]:
        at += 1
    return min(at, most)


def _one_block(old: list[str], new: list[str]) -> list[_Change]:
    """All lines between the first few and the last few that are alike."""
    most = min(len(old), len(new))
    lead = tail = 0
    while lead < min(most, _CONTEXT) and old[lead] == new[lead]:
        lead += 1
    while tail < min(most - lead, _CONTEXT) and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    old_end, new_end = len(old) - tail, len(new) - tail
    return [
        ("equal", 0, lead, 0, lead),
        ("replace", lead, old_end, lead, new_end),
        ("equal", old_end, len(old), new_end, len(new)),
    ]


def _hunk(group: Sequence[_Change], old: list[str], new: list[str], head: int) -> list[str]:
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
