"""write and edit: a file's text, whole or in part."""

import contextlib
import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..lacking import FULL
from ..paths import Roots, ToolFailure, reason
from ..texts import (
    MAX_EDITED,
    NotFoundInText,
    NotUnique,
    ResultTooLarge,
    has_crlf_of,
    replace,
)
from .inputs import Inputs
from .read import MAX_BYTES
from .results import ToolResult

_WRITE = frozenset({"file_path", "content"})
_WORDS = 4096
"""Characters of an error's text that a result has."""
_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE = 1
_EDIT = frozenset({"file_path", "old_string", "new_string", "replace_all"})


def write(roots: Roots, given: Mapping[str, Any]) -> ToolResult:
    """Run the write tool; raises ToolFailure."""
    inputs = Inputs("write", given, _WRITE)
    path, content = inputs.text("file_path"), inputs.text("content")
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _unencodable(error) from None
    resolved = roots.writable("write", path)
    if Path(resolved).parent.is_file():
        raise ToolFailure(f"write: {path}: file already exists")
    if Path(resolved).is_dir():
        raise ToolFailure(f"write: {path}: is a directory")
    _store(roots, "write", path, resolved, data)
    return ToolResult(f"wrote {len(data)} bytes to {path}")


def edit(roots: Roots, given: Mapping[str, Any]) -> ToolResult:
    """Run the edit tool; raises ToolFailure."""
    inputs = Inputs("edit", given, _EDIT)
    path = inputs.text("file_path")
    old, new = inputs.text("old_string"), inputs.text("new_string")
    replace_all = inputs.flag("replace_all")
    resolved = roots.writable("edit", path)
    fd = roots.open_regular(resolved, os.O_RDONLY, lambda why: ToolFailure(f"edit: {path}: {why}"))
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ToolFailure(
                f"edit: {path} is {size} bytes, exceeds {MAX_BYTES}-byte limit. The edit tool "
                "loads the whole file and cannot modify a file this large."
            )
        data = file.read(MAX_BYTES + 1)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ToolFailure(
            f"edit: {path}: not valid UTF-8 text (cannot edit binary files)"
        ) from None
    try:
        changed, count = replace(text, old, new, everywhere=replace_all)
    except NotFoundInText:
        hint = " (the file's lines end in CRLF)" if has_crlf_of(text, old) else ""
        raise ToolFailure(f"edit: old_string not found in {path}{hint}") from None
    except NotUnique as found:
        raise ToolFailure(
            f"edit: old_string appears {found.count} times in {path} (must be unique)"
        ) from None
    except ResultTooLarge:
        raise ToolFailure(
            f"edit: the result of {path} would exceed {MAX_EDITED} characters"
        ) from None
    try:
        data = changed.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _unencodable(error) from None
    _store(roots, "edit", path, resolved, data)
    note = "; old_string and new_string are the same" if old == new else ""
    return ToolResult(f"edited {path} ({count} replacement(s)){note}")


def _unencodable(error: UnicodeEncodeError) -> ToolFailure:
    return ToolFailure(repr(error)[:_WORDS])


def _store(roots: Roots, tool: str, path: str, resolved: str, data: bytes) -> None:
    """Write in place, which keeps the mode, the inode and hard links of a file that exists.

    Where there is no room for it, a file that exists stays as it is, and a new one does not come to
    be.
    """
    new = not os.path.lexists(resolved)
    fd = roots.open_regular(
        resolved,
        os.O_WRONLY | os.O_CREAT,
        lambda why: ToolFailure(f"{tool}: {path}: {why}"),
    )
    try:
        _fill(fd, data)
    except OSError as error:
        if new:
            with contextlib.suppress(OSError), roots.parent(resolved) as (above, name):
                os.unlink(name, dir_fd=above)
        raise ToolFailure(f"{tool}: {path}: {reason(error)}") from None
    finally:
        os.close(fd)


def _fill(fd: int, data: bytes) -> None:
    """Make this the content of an open file; never empty or cut in between. Raises OSError."""
    if _libc.fallocate(fd, _KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(len(data))) != 0:
        # Some filesystems cannot reserve room; those that can say whether there is any.
        number = ctypes.get_errno()
        if number in FULL:
            raise OSError(number, os.strerror(number))
    done = 0
    view = memoryview(data)
    while done < len(data):
        done += os.pwrite(fd, view[done:], done)
    os.ftruncate(fd, len(data))
