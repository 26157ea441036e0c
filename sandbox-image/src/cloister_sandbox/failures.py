"""What the operating system says of a file, as the failure of a call."""

import errno
import os

from .entries import etag, shown
from .errors import Busy, CallError, Exists, Forbidden, NotFound, Stale, WrongState
from .lacking import FULL, LACKING, lacks
from .paths import Roots, ToolFailure, reason

_LACKING = frozenset(reason(OSError(each, "")) for each in LACKING)
"""The words for it."""


def failed(path: str, error: OSError) -> CallError:
    """The failure for a path as the caller gave it."""
    path = shown(path)
    why = f"{path}: {reason(error)}"
    if error.errno in FULL:
        return Busy("DISK_FULL", why, 5.0, "disk")
    if lacks(error):
        return Busy("OUT_OF_RESOURCES", why, 1.0, "processes")
    if isinstance(error, FileNotFoundError):
        return NotFound("NOT_FOUND", why, path=path)
    if isinstance(error, FileExistsError):
        return Exists("EXISTS", why, path=path)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return Forbidden("PERMISSION_DENIED", why, path=path)
    if error.errno == errno.EXDEV:
        return WrongState("CROSS_DEVICE", f"{path}: not on the same file system", path=path)
    return WrongState("FILE_ERROR", why, path=path)


def cannot_open(path: str, why: str) -> CallError:
    """The failure for a file that cannot be opened, in the words of `paths`."""
    if why in _LACKING:
        return Busy("OUT_OF_RESOURCES", f"{shown(path)}: {why}", 1.0, "processes")
    kind = {
        "no such file or directory": NotFound,
        "permission denied": Forbidden,
    }.get(why, WrongState)
    return kind("CANNOT_OPEN", f"{shown(path)}: {why}", path=shown(path))


def refused(path: str, failure: ToolFailure) -> CallError:
    """The failure for a path outside what is permitted."""
    return Forbidden("PATH_REFUSED", shown(str(failure)), path=shown(path))


def resolve(roots: Roots, path: str) -> str:
    """`Roots.resolve` for a service; raises Forbidden."""
    try:
        return roots.resolve("path", path)
    except ToolFailure as failure:
        raise refused(path, failure) from None


def writable(roots: Roots, path: str) -> str:
    """`Roots.writable` for a service; raises Forbidden."""
    try:
        return roots.writable("path", path)
    except ToolFailure as failure:
        raise refused(path, failure) from None


def writable_entry(roots: Roots, path: str, field: str = "path") -> str:
    """`Roots.resolve_entry` for a service; raises Forbidden, which names the field."""
    try:
        return roots.resolve_entry(field, path)
    except ToolFailure as failure:
        raise refused(path, failure) from None


def open_file(roots: Roots, path: str) -> tuple[int, str]:
    """A regular file, open for reading, and its resolved path; raises CallError."""
    resolved = resolve(roots, path)
    fd = roots.open_regular(resolved, os.O_RDONLY, lambda why: cannot_open(path, why))
    return fd, resolved


def require_etag(wanted: str, path: str, info: os.stat_result | None) -> None:
    """Raise Stale unless the file is the one with this etag; an empty one is no condition."""
    current = etag(info) if info is not None else ""
    if wanted and wanted != current:
        raise Stale(
            "ETAG_MISMATCH", f"{shown(path)} is not the file it was", path=shown(path), etag=current
        )
