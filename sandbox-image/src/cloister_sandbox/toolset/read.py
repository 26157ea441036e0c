"""read: a file's text, a range of its lines, or an image or PDF."""

import io
import os
import stat
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from ..paths import Roots, ToolFailure
from .inputs import Inputs
from .results import Blob, ToolResult

MAX_BYTES = 262_144
IMAGE_MAX_BYTES = 3_932_160
PDF_MAX_BYTES = 20 * 1024 * 1024
READ_SECONDS = 60.0
GoOn = Callable[[], None]
"""Called again and again; raises when the work is to stop."""
_FIELDS = frozenset({"file_path", "view_range", "byte_range"})
_NAMES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf"))
"""Extensions of files that are shown, and not read as text, if their bytes agree."""
_CHUNK = 65_536
_AT_ONCE = 65_536
"""Bytes of a file that is read on the event loop."""
_BLOCK = 512
_CONTROLS = frozenset((*range(0x20), *range(0x7F, 0xA0))).difference(b"\t\n\r\f")
"""Bytes that no text in a Latin alphabet has."""


def read(
    roots: Roots,
    given: Mapping[str, Any],
    budget: float = 0.0,
    stopped: Callable[[], bool] = lambda: False,
) -> ToolResult:
    """Run the tool; raises ToolFailure.

    `budget` is in seconds, 0 is the tool's own bound; `stopped` tells that nobody wants the result.
    """
    deadline = time.monotonic() + min(budget or READ_SECONDS, READ_SECONDS)

    def go_on() -> None:
        # A file can be as long as the disk, and have no second line.
        if stopped() or time.monotonic() > deadline:
            raise ToolFailure(f"read: {path}: it takes too long to look through all of it")

    inputs = Inputs("read", given, _FIELDS)
    path = inputs.text("file_path")
    view = inputs.integers("view_range") or None
    window = inputs.integers("byte_range") or None
    resolved = roots.resolve("read", path)
    if window is not None and (view is not None or len(window) != 2 or window[0] < 0):
        raise ToolFailure("read: byte_range must be [first_byte, end], without view_range")
    if view is not None and len(view) != 2:
        raise ToolFailure("read: view_range must be [start_line, end_line]")
    fd = roots.open_regular(resolved, os.O_RDONLY, lambda why: ToolFailure(f"read: {path}: {why}"))
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if window is not None:
            return ToolResult(_window(path, file, size, window[0], window[1]))
        named = os.path.splitext(resolved)[1].lower() in _NAMES  # noqa: PTH122 - no file yet
        if named:
            blob = _blob(path, file, size, view)
            if blob is not None:
                return ToolResult(blob=blob)
            file.seek(0)
        if size > MAX_BYTES and view is None:
            raise ToolFailure(
                f"read: {path} is {size} bytes, exceeds {MAX_BYTES}-byte limit. Use the "
                "view_range parameter to read specific line ranges, e.g. view_range: [1, 500]."
            )
        try:
            return ToolResult(_text(path, file, size, view, go_on))
        except UnicodeDecodeError as error:
            if named:
                raise ToolFailure(
                    f"read: {path}: not valid UTF-8 text, and its bytes are no image or PDF"
                ) from None
            raise ToolFailure(
                f"read: {path}: not valid UTF-8 text (binary files are only supported for image/PDF"
                f" extensions){_guess(error.object)}"
            ) from None


def read_at_once(roots: Roots, given: Mapping[str, Any]) -> ToolResult | None:
    """The tool for a small text file that is in memory already, without waiting for anything.

    None for whatever else, failures too: then `read` is to be asked, in a thread.
    """
    path = given.get("file_path")
    if len(given) != 1 or not isinstance(path, str) or path.lower().endswith(tuple(_NAMES)):
        return None
    try:
        found = roots.find_at_once(path)
    except (OSError, ValueError):
        return None
    try:
        info = os.fstat(found)
        size = max(info.st_size, info.st_blocks * _BLOCK // 4)
        if not stat.S_ISREG(info.st_mode) or size > _AT_ONCE:
            return None  # also one with much on the disk: to let its last name go would take long
        # Only now that it is known to be no FIFO or device is it opened; a tool's lease on it would
        # make the server wait for 45 s.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(f"/proc/self/fd/{found}", flags)
        try:
            buffer = bytearray(info.st_size + 1)
            if os.preadv(fd, [buffer], 0, os.RWF_NOWAIT) != info.st_size:
                return None  # the rest is not in memory, or the file is being written
        finally:
            os.close(fd)
        return ToolResult(buffer[:-1].decode("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    finally:
        os.close(found)


def _text(path: str, file: BinaryIO, size: int, view: list[int] | None, go_on: GoOn) -> str:
    """The whole file, or the lines of a range; raises ToolFailure and UnicodeDecodeError."""
    if size > MAX_BYTES and view is not None:
        return _lines(path, file, view[0], view[1], go_on)
    whole = file.read(MAX_BYTES + 1)
    text = whole.decode("utf-8")
    return text if view is None else _lines(path, io.BytesIO(whole), view[0], view[1], go_on)


def _window(path: str, file: BinaryIO, size: int, first: int, end: int) -> str:
    """Bytes from `first`, counted from 0, up to before `end`, as text; end <= 0 is the file's end.

    For lines that are too long for a range of lines. Characters that the bounds cut in two, and
    other bytes that are no UTF-8, are replaced. Raises ToolFailure.
    """
    end = min(end, size) if end > 0 else size
    if first >= end:
        return f"[{path} has {size} bytes; byte_range was [{first}, {end}]]"
    if end - first > MAX_BYTES:
        raise ToolFailure(
            f"read: byte_range [{first}, {end}] of {path} exceeds {MAX_BYTES}-byte limit. "
            "Narrow the byte_range to read a smaller portion."
        )
    file.seek(first)
    return file.read(end - first).decode("utf-8", errors="replace")


def _blob(path: str, file: BinaryIO, size: int, view: list[int] | None) -> Blob | None:
    """The file as what its first bytes say; None when that is no image or PDF."""
    media = _media(file.read(16))
    if size == 0:
        raise ToolFailure(f"read: {path}: the file is empty, and no image or PDF")
    if media is None:
        return None
    if view is not None:
        raise ToolFailure("read: view_range is not supported for image/PDF files")
    bound = PDF_MAX_BYTES if media == "application/pdf" else IMAGE_MAX_BYTES
    if size > bound:
        raise ToolFailure(
            f"read: {path} is {size} bytes, exceeds {bound}-byte limit for image/PDF files."
        )
    file.seek(0)
    return Blob(media, file.read(bound))


def _media(first: bytes) -> str | None:
    """What a file is that begins with these bytes."""
    if first.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if first.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if first.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if first.startswith(b"RIFF") and first[8:12] == b"WEBP":
        return "image/webp"
    return "application/pdf" if first.startswith(b"%PDF-") else None


def _lines(path: str, file: BinaryIO, start: int, end: int, go_on: GoOn) -> str:
    """Lines start to end, 1-based and inclusive; end <= 0 is the end of the file.

    The last one has no newline, unless the range goes beyond the file's last line. Where there are
    no such lines, a sentence says how many there are. Raises ToolFailure and UnicodeDecodeError.
    """
    first, last = max(start, 1), end if end > 0 else sys.maxsize
    number = 1
    kept = bytearray()
    while number <= last and (chunk := file.read(_CHUNK)):
        go_on()
        for position, piece in enumerate(chunk.split(b"\n")):
            if position:
                if first <= number < last:
                    kept += b"\n"
                number += 1
            if first <= number <= last:
                kept += piece
            if len(kept) > MAX_BYTES:
                raise _too_much(path, start, end)
    if first > last or (not kept and first >= number):
        return f"[{path} has {_count(file, go_on)} lines; view_range was [{start}, {end}]]"
    return kept.decode("utf-8")


def _count(file: BinaryIO, go_on: GoOn) -> int:
    """Lines of a file, with a last one that has no newline."""
    file.seek(0)
    count, last = 0, b"\n"
    while chunk := file.read(_CHUNK):
        go_on()
        count += chunk.count(b"\n")
        last = chunk[-1:]
    return count + (last != b"\n")


def _too_much(path: str, start: int, end: int) -> ToolFailure:
    if end == max(start, 1):
        return ToolFailure(
            f"read: line {end} of {path} alone exceeds {MAX_BYTES}-byte limit. The read tool cannot"
            " return part of a line, so view_range cannot narrow this further."
        )
    return ToolFailure(
        f"read: view_range [{start}, {end}] of {path} exceeds {MAX_BYTES}-byte limit. "
        "Narrow the view_range to read a smaller portion."
    )


def _guess(data: bytes) -> str:
    """What a text in another encoding may be, and how to read it; empty for what is no text."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and len(data) % 2 == 0 and len(data) > 2:
        encoding = "UTF-16"
    elif not _CONTROLS.intersection(data):
        encoding = "ISO-8859-1"
    else:
        return ""
    return f"; it may be {encoding}: iconv -f {encoding} -t UTF-8"
