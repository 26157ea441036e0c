"""Small files of the kernel that every command looks into, kept open."""

import os

_SIZE = 65_536
_open: dict[str, int] = {}


def again(path: str) -> bytes:
    """What is in the file now, at most 64 KiB; raises OSError.

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
    return os.pread(fd, _SIZE, 0)
