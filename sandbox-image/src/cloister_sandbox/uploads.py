"""Uploads: bytes gather in a hidden file beside the target, and take its name when all are there.

An upload with an id survives its stream: the file is kept for ten minutes, and the next stream
goes on where the last one stopped. A finished one is remembered as long, so that a caller who lost
the answer gets it again.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import stat
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from cloister_api.exec.v1 import exec_pb2

from . import beneath
from .entries import entry
from .errors import Busy, Corrupt, Exists, IdConflict, WrongState
from .failures import require_etag
from .paths import Roots

KEPT_SECONDS = 600.0
MAX_UPLOADS = 64
PREFIX = ".cloister-upload-"
MAX_SECONDS = 2**33
"""The latest modification time, since 1970."""
_COPY = 1024 * 1024
_VECTOR = 512
"""Pieces that one call writes; the kernel takes 1024."""
_NO_RENAME = (errno.EXDEV, errno.EBUSY, errno.EACCES, errno.EPERM)


@dataclass
class Upload:
    """One upload; its bytes are written by one thread at a time."""

    start: exec_pb2.UploadStart
    target: str
    payload: bytes
    directory: int
    name: str
    fd: int
    size: int = 0
    crc: int = 0
    touched: float = 0.0
    stream: object = None
    """The stream that may write; a newer one takes over."""
    writing: "asyncio.Future[None] | None" = None
    """The last write; the next one waits for it."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the bytes take their name."""
    finishing: int = 0
    """Streams that have the bytes take their name, or wait for that, though others took over."""
    sealed: bool = False
    """All bytes are there: none may follow."""
    done: exec_pb2.Entry | None = None
    unpacked: tuple[tuple[int, int], int] = ((0, 0), 0)
    """The directory, by device and inode, in which so many members of a tree are written."""

    @property
    def idle(self) -> bool:
        """Whether nobody uses it."""
        return self.stream is None and not self.finishing

    def append(self, pieces: Iterable[bytes]) -> None:
        """Write bytes at the end; raises OSError."""
        left = [memoryview(each) for each in pieces if each]
        while left:
            written = os.pwritev(self.fd, left[:_VECTOR], self.size)
            self.size += written
            while written:
                done = left[0][:written]
                self.crc = zlib.crc32(done, self.crc)
                written -= len(done)
                left[0] = left[0][len(done) :]
                if not left[0]:
                    del left[0]

    def discard(self) -> None:
        """Forget the bytes; harmless when there are none any more."""
        # First: while this takes long, somebody else may discard it, too.
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(self.name, dir_fd=self.directory)
        os.close(fd)
        os.close(self.directory)
        self.directory = -1

    def verify(self, end: exec_pb2.UploadEnd) -> None:
        """Raise Corrupt unless these are the announced bytes."""
        if end.size != self.size:
            raise Corrupt("SIZE_MISMATCH", f"{self.size} bytes arrived, {end.size} were announced")
        if end.HasField("crc32") and end.crc32 != self.crc:
            raise Corrupt("CHECKSUM_MISMATCH", "the bytes that arrived are not those sent")


class Uploads:
    """Every upload that is under way, interrupted or lately finished.

    Its methods are called on the event loop; those that touch the disk say so and are not.
    """

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._known: dict[str, Upload] = {}

    def find(self, start: exec_pb2.UploadStart) -> Upload | None:
        """The upload with the id of `start`; raises IdConflict for another payload."""
        found = self._known.get(start.upload_id) if start.upload_id else None
        if found is not None and found.payload != _payload(start):
            why = "this upload_id belongs to another upload"
            raise IdConflict("ID_CONFLICT", why, upload_id=start.upload_id)
        return found

    def keep(self, upload: Upload) -> list[Upload]:
        """Remember an upload if it has an id; returns those that have to be discarded for it.

        Raises Busy when all that is kept is under way.
        """
        dropped = []
        if len(self._known) >= MAX_UPLOADS:
            idle = [each for each in self._known.values() if each.idle]
            if not idle:
                why = f"{MAX_UPLOADS} uploads are under way"
                raise Busy("TOO_MANY_UPLOADS", why, 1.0, "uploads", MAX_UPLOADS)
            oldest = min(idle, key=lambda each: each.touched)
            dropped.append(self._known.pop(oldest.start.upload_id))
        if upload.start.upload_id:
            self._known[upload.start.upload_id] = upload
        return dropped

    def expire(self) -> list[Upload]:
        """Forget what nobody came back for; returns what has to be discarded."""
        end = time.monotonic() - KEPT_SECONDS
        old = [name for name, each in self._known.items() if each.idle and each.touched <= end]
        return [self._known.pop(name) for name in old]

    def forget(self, upload: Upload) -> None:
        """Stop remembering an upload."""
        if self._known.get(upload.start.upload_id) is upload:
            del self._known[upload.start.upload_id]

    def state(self, upload_id: str) -> int:
        """Bytes that arrived."""
        found = self._known.get(upload_id)
        return found.size if found is not None else 0

    def all(self) -> list[Upload]:
        """Every remembered upload."""
        return list(self._known.values())

    def create(self, start: exec_pb2.UploadStart, target: str) -> Upload:
        """A new upload with its hidden file, on the target's file system. Touches the disk.

        Raises OSError, and what `check` raises.
        """
        self.check(start, target)
        name = PREFIX + secrets.token_hex(8)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        directory = self._roots.nearest(target)
        try:
            fd = os.open(name, flags, 0o600, dir_fd=directory)
        except PermissionError:
            # A file may be writable in a directory that is not: its bytes are copied in the end.
            os.close(directory)
            directory = self._roots.nearest(str(self._roots.workspace / "any"))
            try:
                fd = os.open(name, flags, 0o600, dir_fd=directory)
            except OSError:
                os.close(directory)
                raise
        except OSError:
            os.close(directory)
            raise
        return Upload(start, target, _payload(start), directory, name, fd)

    def check(self, start: exec_pb2.UploadStart, target: str) -> os.stat_result | None:
        """What is at the target now, None for nothing. Touches the disk.

        Raises Exists, Stale and OSError where the upload cannot take its place.
        """
        info = self._look(target)
        if start.tree:
            if info is not None and not stat.S_ISDIR(info.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return info
        if info is not None and start.create_only:
            raise Exists("EXISTS", f"{start.path} exists", path=start.path)
        if info is not None and stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if info is not None and not stat.S_ISREG(info.st_mode):
            raise WrongState("FILE_ERROR", f"{start.path}: not a regular file", path=start.path)
        require_etag(start.if_etag, start.path, info)
        return info

    def _look(self, target: str) -> os.stat_result | None:
        try:
            with self._roots.parent(target) as (directory, name):
                return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def place(self, upload: Upload) -> exec_pb2.Entry:
        """Give the bytes their name, in one step where the file system can. Touches the disk.

        Raises OSError, and what `check` raises.
        """
        info = self.check(upload.start, upload.target)
        _require_own(upload)
        mode = upload.start.mode or (stat.S_IMODE(info.st_mode) & 0o777 if info else 0o644)
        os.fchmod(upload.fd, mode)
        _set_time(upload, upload.fd)
        with self._roots.parent(upload.target, create=True) as (directory, name):
            try:
                if upload.start.create_only:
                    beneath.rename_new(upload.directory, upload.name, directory, name)
                else:
                    os.rename(upload.name, name, src_dir_fd=upload.directory, dst_dir_fd=directory)
                after = os.fstat(upload.fd)
            except OSError as error:
                if error.errno not in _NO_RENAME:
                    raise
                after = _copy(upload, directory, name, mode)
        if after.st_size != upload.size:
            raise Corrupt("FILE_CHANGED", "the file changed while it was written")
        return entry(upload.target, after)


def _require_own(upload: Upload) -> None:
    """Raise Corrupt when a tool has put something else under the hidden name.

    One that does so a moment later could as well have replaced the target.
    """
    own = os.fstat(upload.fd)
    try:
        found = os.stat(upload.name, dir_fd=upload.directory, follow_symlinks=False)
    except FileNotFoundError:
        found = None
    if found is None or not os.path.samestat(own, found):
        raise Corrupt("FILE_CHANGED", "the file was taken away while it was written")


def _copy(upload: Upload, directory: int, name: str, mode: int) -> os.stat_result:
    """Write the bytes into the file itself, which a mount or its directory keeps in its place."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_CREAT
    if upload.start.create_only:
        flags |= os.O_EXCL
    fd = os.open(name, flags, mode, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        os.ftruncate(fd, 0)
        at = 0
        # No further than what came: a tool may append as fast as this reads.
        while piece := os.pread(upload.fd, min(_COPY, upload.size - at), at):
            view = memoryview(piece)
            while view:
                written = os.write(fd, view)
                at, view = at + written, view[written:]
        if upload.start.mode:
            os.fchmod(fd, mode)
        _set_time(upload, fd)
        return os.fstat(fd)
    finally:
        os.close(fd)


def _set_time(upload: Upload, fd: int) -> None:
    """Give a file its modification time, within what every file system can hold."""
    if upload.start.HasField("mtime"):
        given = upload.start.mtime
        nanos = min(max(given.seconds, 0), MAX_SECONDS) * 10**9 + min(
            max(given.nanos, 0), 10**9 - 1
        )
        os.utime(fd, ns=(nanos, nanos))


def _payload(start: exec_pb2.UploadStart) -> bytes:
    """What must be the same when an id comes again."""
    plain = exec_pb2.UploadStart()
    plain.CopyFrom(start)
    plain.ClearField("offset")
    return hashlib.blake2b(plain.SerializeToString(deterministic=True)).digest()
