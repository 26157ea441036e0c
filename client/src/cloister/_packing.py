"""Files of this machine as tar archives of a bounded size."""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ._errors import LocalFileError
from ._places import local_errors

SMALL = 1024 * 1024
"""A larger file is sent by itself, so that it can be gone on with."""
_BATCH_BYTES = 8 * 1024 * 1024
_BATCH_FILES = 2000
_HEADERS = 3 * tarfile.BLOCKSIZE
_TRIES = 3


@dataclass(frozen=True)
class Item:
    """A file or directory below the root of a copy."""

    relative: str
    """Bytes that are no text are surrogate escapes, as Python has them."""
    directory: bool
    size: int
    mode: int
    mtime_ns: int

    @property
    def is_text(self) -> bool:
        """Whether its name can be written in a message."""
        try:
            self.relative.encode()
        except UnicodeEncodeError:
            return False
        return True


def batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """The items in groups that are worth a call and are quickly sent again."""
    batch: list[Item] = []
    size = 0
    for each in items:
        if batch and (size + each.size > _BATCH_BYTES or len(batch) >= _BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.size + _HEADERS
    if batch:
        yield batch


def pack(root: Path, items: Sequence[Item]) -> BinaryIO:
    """The archive of these items; raises LocalFileError."""
    large = sum(each.size for each in items) > 2 * _BATCH_BYTES
    out: BinaryIO = tempfile.TemporaryFile() if large else io.BytesIO()  # noqa: SIM115 - the caller closes it
    try:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for each in items:
                _add(archive, root / each.relative, each)
    except BaseException:
        out.close()
        raise
    return out


def _add(archive: tarfile.TarFile, path: Path, item: Item) -> None:
    header = tarfile.TarInfo(item.relative)
    if item.directory:
        header.type = tarfile.DIRTYPE
        header.mode, header.mtime = item.mode, item.mtime_ns // 10**9
        archive.addfile(header)
        return
    with local_errors("read", path), path.open("rb") as file:
        for _ in range(_TRIES):
            before = os.fstat(file.fileno())
            header.size, header.mode = before.st_size, before.st_mode & 0o777
            # Text, since a float would not hold all of the nanoseconds.
            header.mtime = max(0, before.st_mtime_ns) // 10**9
            header.pax_headers = {"mtime": f"{header.mtime}.{before.st_mtime_ns % 10**9:09}"}
            if before.st_size <= SMALL:
                file.seek(0)
                content = file.read(before.st_size)
                if len(content) == before.st_size and _same(before, os.fstat(file.fileno())):
                    archive.addfile(header, io.BytesIO(content))
                    return
            else:
                archive.addfile(header, file)
                if _same(before, os.fstat(file.fileno())):
                    return
                break
    raise LocalFileError(f"{path} changed while it was read")


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
