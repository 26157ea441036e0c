"""Opening and renaming below a directory that is already open, without following any link.

Where the kernel has openat2(2) one call resolves the whole path beneath the directory. Elsewhere,
as under gVisor, the path is walked one component at a time, each opened without following a link.
Both refuse the same paths with the same errors, whatever is swapped in between.
"""

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Sequence

_OPENAT2 = 437  # the same number on every architecture
_AT_FDCWD = -100
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _CACHED = 0x01, 0x02, 0x04, 0x08, 0x20
_RENAME_NOREPLACE = 1
_TRIES = 8
_LONGEST = 4000
"""Bytes of a path that one call takes; longer ones take several."""
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LISTABLE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    how = _How(flags, 0, resolve)
    fd: int = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def _probe() -> bool:
    try:
        os.close(_openat2(_AT_FDCWD, b"/", DIRECTORY, _NO_MAGICLINKS))
    except OSError:
        # Too old a kernel, or a seccomp filter that refuses what it does not know.
        return False
    return True


HAS_OPENAT2 = _probe()


def open_directory(root: int, parts: Sequence[str], flags: int = DIRECTORY) -> int:
    """Open the directory `parts` below `root`; the caller closes it.

    Raises OSError; NotADirectoryError where a link or a file is on the way.
    """
    if not parts:
        return os.open(".", flags, dir_fd=root)
    if not HAS_OPENAT2:
        return _walk(root, parts, flags)
    here = root
    try:
        groups = _groups(parts)
        for position, group in enumerate(groups):
            wanted = flags if position == len(groups) - 1 else DIRECTORY
            below = _resolve(here, group, wanted)
            if here != root:
                os.close(here)
            here = below
    except OSError:
        if here != root:
            os.close(here)
        raise
    return here


@functools.cache
def _slash() -> int:
    return os.open("/", DIRECTORY)


def open_root(path: str) -> int:
    """Open a directory by its absolute path that has no links; the caller closes it.

    Raises OSError, also where there is one by now: tools that are root may put it there, and what
    is a process's own in /proc would be this one's.
    """
    return open_directory(_slash(), [part for part in path.split("/") if part])


def find_at_once(root: int, path: str) -> int:
    """A descriptor (O_PATH) of what is at a relative path, without ever waiting for a disk.

    Raises OSError for whatever is no plain case: nothing there, a link or a mount on the way, a
    path that the kernel does not have in its cache, no openat2(2).
    """
    if not HAS_OPENAT2:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    how = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | _NO_XDEV | _CACHED
    return _openat2(root, os.fsencode(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, how)


def _groups(parts: Sequence[str]) -> list[list[str]]:
    """The parts in runs that the kernel takes as one path each."""
    groups: list[list[str]] = [[]]
    size = 0
    for part in parts:
        length = len(os.fsencode(part)) + 1
        if groups[-1] and size + length > _LONGEST:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += length
    return groups


def _resolve(root: int, parts: list[str], flags: int) -> int:
    path = os.fsencode("/".join(parts))
    for _ in range(_TRIES):
        try:
            return _openat2(root, path, flags, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _not_a_directory() from None
            if error.errno != errno.EAGAIN:  # something on the way was moved meanwhile
                raise
    return _walk(root, parts, flags)


def _walk(root: int, parts: Sequence[str], flags: int) -> int:
    directory = root
    try:
        for position, part in enumerate(parts):
            if part in ("", ".", ".."):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            wanted = flags if position == len(parts) - 1 else DIRECTORY
            below = os.open(part, wanted, dir_fd=directory)
            if directory != root:
                os.close(directory)
            directory = below
    except OSError as error:
        if directory != root:
            os.close(directory)
        if error.errno == errno.ELOOP:
            raise _not_a_directory() from None
        raise
    return directory


def make_directories(root: int, parts: Sequence[str]) -> int:
    """Like `open_directory`, making what is missing."""
    try:
        return open_directory(root, parts)
    except FileNotFoundError:
        pass
    directory = os.open(".", DIRECTORY, dir_fd=root)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=directory)
            below = open_directory(directory, (part,))
            os.close(directory)
            directory = below
    except OSError:
        os.close(directory)
        raise
    return directory


def _not_a_directory() -> OSError:
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def rename_new(source: int, name: str, target: int, new: str) -> None:
    """Rename unless the new name exists: then FileExistsError. Raises OSError.

    Where the file system cannot do it in one step, a link or an empty directory takes the name
    first, so that nothing is ever replaced.
    """
    result = _libc.renameat2(source, os.fsencode(name), target, os.fsencode(new), _RENAME_NOREPLACE)
    if result == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        raise OSError(number, os.strerror(number))
    rename_new_in_steps(source, name, target, new)


def rename_new_in_steps(source: int, name: str, target: int, new: str) -> None:
    """`rename_new` for kernels and file systems without renameat2(2)."""
    try:
        os.link(name, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except (PermissionError, IsADirectoryError):  # what the kernel says of directories
        os.mkdir(new, dir_fd=target)
        try:
            os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
        except OSError:
            os.rmdir(new, dir_fd=target)
            raise
    else:
        os.unlink(name, dir_fd=source)
