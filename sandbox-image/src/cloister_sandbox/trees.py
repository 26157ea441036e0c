"""A directory as a tar stream, made piece by piece: memory does not grow with the tree."""

import errno
import os
import stat
import tarfile
import zlib
from collections.abc import Generator, Iterator

from .entries import read_link, shown
from .errors import Corrupt, WrongState
from .failures import failed
from .paths import Roots
from .walks import Found, TooLarge, walk

CHUNK = 262_144
_LARGEST = (1 << 63) - 1
"""Bytes of the longest file: the kernel takes no larger number."""
_BLOCK = tarfile.BLOCKSIZE
_END = b"\0" * (2 * _BLOCK)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
Piece = tuple[int, bytes, int]
"""Offset, bytes, and the CRC-32 of all bytes so far."""


def file_pieces(fd: int, offset: int, length: int) -> Iterator[Piece]:
    """A file's bytes from `offset`, `length` of them or all for 0; raises OSError."""
    end = min(offset + length, _LARGEST) if length else _LARGEST
    crc = 0
    while offset < end and (data := os.pread(fd, min(CHUNK, end - offset), offset)):
        crc = zlib.crc32(data, crc)
        yield offset, data, crc
        offset += len(data)


def tree_pieces(roots: Roots, path: str, resolved: str) -> Iterator[Piece]:
    """The tar stream of a directory, in pieces of CHUNK bytes; raises CallError."""
    offset = crc = 0
    held = bytearray()
    blocks = _blocks(roots, path, resolved)
    try:
        for block in blocks:
            held += block
            while len(held) >= CHUNK:
                data = bytes(held[:CHUNK])
                del held[:CHUNK]
                crc = zlib.crc32(data, crc)
                yield offset, data, crc
                offset += len(data)
    finally:
        blocks.close()
    yield offset, bytes(held), zlib.crc32(held, crc)


def _blocks(roots: Roots, path: str, resolved: str) -> Generator[bytes, None, None]:
    try:
        root = roots.directory(resolved)
    except OSError as error:
        raise failed(path, error) from None
    try:
        for found in walk(root, strict=True):
            yield from _member(found)
    except OSError as error:
        raise failed(f"{path}/{error.filename or ''}".rstrip("/"), error) from None
    except TooLarge as bound:
        raise WrongState("TREE_TOO_LARGE", f"{shown(path)} has {bound}", path=shown(path)) from None
    finally:
        os.close(root)
    yield _END


def _member(found: Found) -> Iterator[bytes]:
    header = tarfile.TarInfo(found.relative)
    header.mode = stat.S_IMODE(found.info.st_mode)
    header.mtime = int(found.info.st_mtime)
    if found.is_directory:
        header.type = tarfile.DIRTYPE
        yield _encoded(header)
    elif stat.S_ISLNK(found.info.st_mode):
        header.type = tarfile.SYMTYPE
        header.linkname = read_link(found.name, found.directory, found.info)
        if header.linkname:
            yield _encoded(header)
    elif stat.S_ISREG(found.info.st_mode):
        yield from _file(header, found)


def _file(header: tarfile.TarInfo, found: Found) -> Iterator[bytes]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(found.name, flags, dir_fd=found.directory)
    except OSError as error:
        if error.errno in _GONE:  # removed or replaced since it was looked at
            return
        error.filename = found.relative
        raise
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return
        header.size = info.st_size
        yield _encoded(header)
        at = 0
        while at < header.size:
            data = os.pread(fd, min(CHUNK, header.size - at), at)
            if not data:
                raise Corrupt("FILE_CHANGED", f"{shown(found.relative)} shrank while it was read")
            yield data
            at += len(data)
        yield b"\0" * (-header.size % _BLOCK)
    finally:
        os.close(fd)


def _encoded(header: tarfile.TarInfo) -> bytes:
    # GNU's format carries names of any length and any bytes as they are.
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
