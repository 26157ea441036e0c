"""Small files of the kernel that every command looks into, kept open."""

import os

_SIZE = 65_536
_PAGE = 4000
"""Bytes; the kernel hands out such files by pages of at least so many, and whole words."""
_MOST = 1024 * 1024
_open: dict[str, int] = {}


def again(path: str) -> bytes:
    """What is in the file now, at most about a megabyte; raises OSError.

    It is opened once, which is most of the work. For a few files that are there for as long as the
    server is, or never are.
    """
    fd = _open.get(path)
    if fd is None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = -1
        _open[path] = fd
    return whole(fd)


def whole(fd: int) -> bytes:
    """What is in an open file of the kernel's, likewise.

    It tells a page at a time of a long list: what is read once would lack whoever is behind the
    many that a tool has put first.
    """
    data = os.pread(fd, _SIZE, 0)
    if len(data) < _PAGE:
        return data
    parts, size = [data], len(data)
    while data and size < _MOST:
        data = os.pread(fd, _SIZE, size)
        parts.append(data)
        size += len(data)
    return b"".join(parts)
