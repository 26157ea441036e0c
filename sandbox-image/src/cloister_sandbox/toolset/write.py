"""write and edit: a file's text, whole or in part."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
_EDIT = frozenset({"file_path", "old_string", "new_string", "replace_all"})


def write(roots: Roots, given: Mapping[str, Any]) -> ToolResult:
    """Run the write tool; raises ToolFailure."""
    inputs = Inputs("write", given, _WRITE)
    path, content = inputs.text("file_path"), inputs.text("content")
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError:
        raise ToolFailure("write: content has a character that UTF-8 cannot encode") from None
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
    _store(roots, "edit", path, resolved, changed.encode("utf-8", errors="strict"))
    return ToolResult(f"edited {path} ({count} replacement(s))")


def _store(roots: Roots, tool: str, path: str, resolved: str, data: bytes) -> None:
    """Write in place, which keeps the mode, the inode and hard links of a file that exists."""
    fd = roots.open_regular(
        resolved,
        os.O_WRONLY | os.O_CREAT,
        lambda why: ToolFailure(f"{tool}: {path}: {why}"),
    )
    try:
        with os.fdopen(fd, "wb") as file:
            file.truncate(0)
            file.write(data)
    except OSError as error:
        raise ToolFailure(f"{tool}: {path}: {reason(error)}") from None
