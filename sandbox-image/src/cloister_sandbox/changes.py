"""Renaming and removing, beneath the permitted directories and without following a link."""

import errno
import os
import stat
import time
from collections.abc import Callable

from cloister_api.exec.v1 import exec_pb2

from . import beneath
from .entries import entry, read_link, shown
from .errors import WrongState
from .failures import failed
from .paths import Roots
from .walks import TooLarge

REMOVE_SECONDS = 300.0
MAX_LEVELS = 100_000
"""Of directories in each other; the way back takes memory for each."""
_TRIES = 3
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)
_IN_THE_WAY = (*_NOT_EMPTY, errno.EISDIR, errno.ENOTDIR)
"""What is at the destination does not let itself be replaced."""


def move(roots: Roots, request: exec_pb2.MoveRequest, source: str, target: str) -> exec_pb2.Entry:
    """Rename an entry, whose paths are resolved; raises CallError about the one that it fails at,
    or about both where nobody can tell.
    """
    both = f"{request.source} -> {request.destination}"
    at = request.source
    try:
        with roots.parent(source) as (old, name):
            at = request.destination
            with roots.parent(target) as (new, other):
                at = both
                if request.overwrite:
                    os.rename(name, other, src_dir_fd=old, dst_dir_fd=new)
                else:
                    beneath.rename_new(old, name, new, other)
                info = os.stat(other, dir_fd=new, follow_symlinks=False)
                return entry(target, info, read_link(other, new, info))
    except OSError as error:
        if at == both and error.errno == errno.ENOENT:
            at = request.source
        if at == both and error.errno in _IN_THE_WAY:
            at = request.destination
        raise failed(at, error) from None


def remove(
    roots: Roots, path: str, resolved: str, *, recursive: bool, stopped: Callable[[], bool]
) -> None:
    """Remove a resolved entry; raises CallError.

    A directory that is not empty needs `recursive`.
    """
    inside = False
    try:
        with roots.parent(resolved) as (above, name):
            info = os.stat(name, dir_fd=above, follow_symlinks=False)
            if not stat.S_ISDIR(info.st_mode):
                os.unlink(name, dir_fd=above)
                return None
            for _ in range(_TRIES if recursive else 0):
                inside = True
                _empty(above, name, stopped)
                inside = False
                try:
                    return os.rmdir(name, dir_fd=above)
                except OSError as error:  # somebody fills it, or the listing passed something over
                    if error.errno not in _NOT_EMPTY:
                        raise
            os.rmdir(name, dir_fd=above)
    except TooLarge as bound:
        why = f"{shown(path)} has {bound}"
        raise WrongState("TREE_TOO_LARGE", why, path=shown(path)) from None
    except OSError as error:
        if error.errno in _NOT_EMPTY:
            why = "is not empty" + ("" if recursive else ": pass recursive to remove all of it")
            raise WrongState("NOT_EMPTY", f"{shown(path)} {why}", path=shown(path)) from None
        below = f"/{error.filename}" if isinstance(error.filename, str) and inside else ""
        raise failed(path + below, error) from None


def _empty(above: int, name: str, stopped: Callable[[], bool]) -> None:
    """Remove all that is in a directory, with one descriptor however deep it is.

    The way up is `..`, believed only when it leads where the way down began: a directory that is
    moved meanwhile ends the removal.
    """
    deadline = time.monotonic() + REMOVE_SECONDS
    way: list[tuple[str, tuple[int, int]]] = []
    here = os.open(name, beneath.LISTABLE, dir_fd=above)
    try:
        while True:
            child = _unlink_files(here, lambda: stopped() or time.monotonic() > deadline)
            if child is not None:
                try:
                    below = os.open(child, beneath.LISTABLE, dir_fd=here)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        continue  # replaced meanwhile; looked at again
                    error.filename = child
                    raise
                if len(way) == MAX_LEVELS:
                    os.close(below)
                    raise TooLarge(f"more than {MAX_LEVELS} levels of directories")
                way.append((child, _identity(here)))
                os.close(here)
                here = below
                continue
            if not way:
                return
            last, parent = way.pop()
            up = os.open("..", beneath.LISTABLE, dir_fd=here)
            if _identity(up) != parent:
                os.close(up)
                raise OSError(errno.EBUSY, "was moved while it was removed", last)
            os.close(here)
            here = up
            _remove_directory(here, last)
    finally:
        os.close(here)


def _remove_directory(here: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=here)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, *_NOT_EMPTY):
            error.filename = name
            raise


def _unlink_files(here: int, ended: Callable[[], bool]) -> str | None:
    """Unlink what is no directory; returns the name of a directory that is left, or None."""
    with os.scandir(here) as entries:
        for each in entries:
            if ended():
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            try:
                info = os.stat(each.name, dir_fd=here, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    return each.name
                os.unlink(each.name, dir_fd=here)
            except (FileNotFoundError, IsADirectoryError):
                continue
            except OSError as error:
                error.filename = each.name
                raise
    return None


def _identity(directory: int) -> tuple[int, int]:
    info = os.fstat(directory)
    return info.st_dev, info.st_ino
