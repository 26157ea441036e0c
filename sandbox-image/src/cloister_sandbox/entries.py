"""Descriptions of files: what a path is, and the etag that changes with its content."""

import hashlib
import os
import stat
import struct

from cloister_api.exec.v1 import exec_pb2

_FIRST, _LAST = -62_135_596_800 * 10**9, 253_402_300_800 * 10**9 - 1
"""Nanoseconds from 1970 to the beginning of year 1, and to the end of year 9999."""


def etag(info: os.stat_result) -> str:
    """Opaque; changes whenever the file is written, replaced or given other attributes."""
    numbers = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    packed = struct.pack("<4q", *(each & 0x7FFF_FFFF_FFFF_FFFF for each in numbers))
    return hashlib.blake2b(packed, digest_size=12).hexdigest()


def shown(text: str) -> str:
    """A name as a message can carry it: bytes that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


def entry(path: str, info: os.stat_result, link: str = "") -> exec_pb2.Entry:
    """The message for an absolute path; `link` is where a symbolic link points."""
    kind = exec_pb2.Entry.TYPE_OTHER
    if stat.S_ISREG(info.st_mode):
        kind = exec_pb2.Entry.TYPE_FILE
    elif stat.S_ISDIR(info.st_mode):
        kind = exec_pb2.Entry.TYPE_DIRECTORY
    elif stat.S_ISLNK(info.st_mode):
        kind = exec_pb2.Entry.TYPE_SYMLINK
    message = exec_pb2.Entry(
        path=shown(path),
        type=kind,
        size=info.st_size,
        mode=stat.S_IMODE(info.st_mode),
        symlink_target=shown(link),
        etag=etag(info),
    )
    # File systems hold times that messages have no room for: whoever sets one would spoil listings.
    message.mtime.FromNanoseconds(min(max(info.st_mtime_ns, _FIRST), _LAST))
    return message


def read_link(name: str, directory: int, info: os.stat_result) -> str:
    """Where `name` in an open directory points; empty for what is no link, or none any more."""
    if not stat.S_ISLNK(info.st_mode):
        return ""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return ""
