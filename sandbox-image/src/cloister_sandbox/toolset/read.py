"""read: a file's text, a range of its lines, or an image or PDF."""

import os
from collections.abc import Mapping
from typing import Any

from ..paths import Roots, ToolFailure
from .inputs import Inputs
from .results import Blob, ToolResult

MAX_BYTES = 262_144
IMAGE_MAX_BYTES = 3_932_160
PDF_MAX_BYTES = 20 * 1024 * 1024
_FIELDS = frozenset({"file_path", "view_range"})
_MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".pdf": "application/pdf",
}
_MAGIC = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
    "application/pdf": (b"%PDF-",),
}
_CHUNK = 65_536


def read(roots: Roots, given: Mapping[str, Any]) -> ToolResult:
    """Run the tool; raises ToolFailure."""
    inputs = Inputs("read", given, _FIELDS)
    path = inputs.text("file_path")
    view = inputs.integers("view_range") or None
    if view is not None and len(view) != 2:
        raise ToolFailure("read: view_range must be [start_line, end_line]")
    resolved = roots.resolve("read", path)
    fd = roots.open_regular(resolved, os.O_RDONLY, lambda why: ToolFailure(f"read: {path}: {why}"))
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        media = _MEDIA.get(os.path.splitext(path)[1].lower())  # noqa: PTH122 - a name, not a file
        if media is not None:
            blob = _blob(path, file.read(PDF_MAX_BYTES + 1), size, media, view)
            if blob is not None:
                return ToolResult(blob=blob)
            file.seek(0)
        if view is not None:
            start, end = view
            text = _lines(path, file, start, end)
        elif size > MAX_BYTES:
            raise ToolFailure(
                f"read: {path} is {size} bytes, exceeds {MAX_BYTES}-byte limit. Use the "
                "view_range parameter to read specific line ranges, e.g. view_range: [1, 500]."
            )
        else:
            text = _decode(path, file.read(MAX_BYTES + 1))
    return ToolResult(text)


def _blob(path: str, data: bytes, size: int, media: str, view: list[int] | None) -> Blob | None:
    """The file as an image or PDF; None when its bytes are something else under that name."""
    if not data.startswith(_MAGIC[media]) or (media == "image/webp" and data[8:12] != b"WEBP"):
        return None
    if view is not None:
        raise ToolFailure("read: view_range is not supported for image/PDF files")
    bound = PDF_MAX_BYTES if media == "application/pdf" else IMAGE_MAX_BYTES
    if size > bound:
        raise ToolFailure(
            f"read: {path} is {size} bytes, exceeds {bound}-byte limit for image/PDF files."
        )
    return Blob(media, data)


def _lines(path: str, file: Any, start: int, end: int) -> str:
    """Lines start to end, 1-based and inclusive; end <= 0 is the end of the file."""
    start = max(start, 1)
    if 0 < end < start:
        raise ToolFailure(f"read: view_range [{start}, {end}] of {path} is reversed")
    kept: list[bytes] = []
    held = number = 0
    for number, line in enumerate(_iterate(path, file, start), start=1):
        if number < start:
            continue
        if len(line) > MAX_BYTES:
            raise _too_long(path, number)
        held += len(line)
        if held > MAX_BYTES:
            raise ToolFailure(
                f"read: view_range [{start}, {end}] of {path} exceeds {MAX_BYTES}-byte limit. "
                "Narrow the view_range to read a smaller portion."
            )
        kept.append(line)
        if 0 < end <= number:
            break
    if not kept:
        raise ToolFailure(f"read: {path} has {number} lines")
    whole = b"".join(kept)
    if end > 0 and whole.endswith(b"\n"):
        whole = whole[:-1]
    return _decode(path, whole)


def _iterate(path: str, file: Any, start: int) -> Any:
    """Lines with their ends; a line that alone exceeds the limit is refused if it is wanted."""
    number, pending = 1, b""
    skipped = False
    while chunk := file.read(_CHUNK):
        pieces = (pending + chunk).splitlines(keepends=True) if not skipped else []
        if skipped:
            at = chunk.find(b"\n")
            if at < 0:
                continue
            yield b"\n"
            number, skipped = number + 1, False
            pieces = chunk[at + 1 :].splitlines(keepends=True)
        pending = b""
        merged: list[bytes] = []
        for piece in pieces:  # bytes.splitlines also splits at a lone CR
            if merged and not merged[-1].endswith(b"\n"):
                merged[-1] += piece
            else:
                merged.append(piece)
        if merged and not merged[-1].endswith(b"\n"):
            pending = merged.pop()
        for piece in merged:
            yield piece
            number += 1
        if len(pending) > MAX_BYTES:
            if number < start:
                pending, skipped = b"", True
            else:
                raise _too_long(path, number)
    if pending or skipped:
        yield pending


def _too_long(path: str, number: int) -> ToolFailure:
    return ToolFailure(
        f"read: line {number} of {path} alone exceeds {MAX_BYTES}-byte limit. The read tool cannot "
        "return part of a line, so view_range cannot narrow this further."
    )


def _decode(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ToolFailure(
            f"read: {path}: not valid UTF-8 text "
            "(binary files are only supported for image/PDF extensions)"
        ) from None
