"""What a session's files are made of: bytes, and copies to and from this machine."""

from pathlib import Path

from . import _trees
from ._connection import Connection
from ._files import Files
from ._models import Entry
from ._numbers import whole
from ._progress import Progress

READ_LIMIT = 64 * 1024 * 1024


class FileCopies:
    """The part of AsyncSession that carries bytes of files; do not make one yourself."""

    def __init__(self, connection: Connection) -> None:
        self._files = Files(connection)

    async def stat(self, path: str) -> Entry:
        """Describe a path; raises NotFoundError."""
        return await self._files.stat(path)

    async def list_files(self, path: str = "/workspace", *, depth: int = 1) -> list[Entry]:
        """The entries of a directory, parents before children; depth 1 is its own entries."""
        return await self._files.list(path, depth)

    async def read_bytes(
        self, path: str, *, first: int = 0, count: int | None = None, limit: int = READ_LIMIT
    ) -> bytes:
        """A file's bytes; raises FailedPreconditionError when there are more than `limit`.

        first, count: the first byte, counted from 0, and how many at most; None is to the file's
        end, behind which there are none.
        """
        return await self._files.read_bytes(
            path,
            whole("first", first),
            count if count is None else whole("count", count, 1),
            whole("limit", limit),
        )

    async def write_bytes(
        self,
        path: str,
        content: bytes,
        *,
        mode: int = 0o644,
        if_etag: str = "",
        create_only: bool = False,
    ) -> Entry:
        """Write a file, making its directories; it appears when it is complete.

        if_etag: of the Entry that it may replace; FailedPreconditionError (ETAG_MISMATCH) when
        another file is there by now. create_only: AlreadyExistsError when there is any.
        """
        return await self._files.write(
            path, content, mode, if_etag=if_etag, create_only=create_only
        )

    async def upload(
        self,
        source: str | Path,
        target: str,
        *,
        progress: Progress | None = None,
        skip_same: bool = True,
    ) -> list[str]:
        """Copy a file or a directory of this machine into the sandbox, with modes and times.

        A target that is a directory, or ends in a slash, gets the source under its own name.
        Returns what was left out: links to directories, devices. Raises LocalFileError, also when
        a file changes while it is read.

        progress: called as progress(bytes done, bytes in all or None, files done, name) on the
        event loop; it must not block, and what it raises ends the copy. skip_same: pass over the
        files of a directory that have the same size, modification time and mode on both sides. So
        a copy that was interrupted goes on when it is repeated; of a large file, what arrived is
        kept for ten minutes.
        """
        return await _trees.upload(
            self._files, Path(source), target, progress=progress, skip_same=skip_same
        )

    async def download(
        self,
        source: str,
        target: str | Path,
        *,
        progress: Progress | None = None,
        skip_same: bool = True,
    ) -> list[str]:
        """Copy a file or a directory of the sandbox to this machine, with modes and times.

        A target that is a directory gets the source under its own name; nothing is written outside
        it, nor through links in it. Returns what was left out: symbolic links, devices. Files of a
        directory that are removed meanwhile are not copied. Raises LocalFileError, and
        DataLossError when a file goes on changing while it is read.

        progress, skip_same: see `upload`. What arrived of a large file is kept beside it, as
        `.NAME.*.partial`, until the copy is repeated.
        """
        return await _trees.download(
            self._files, source, Path(target), progress=progress, skip_same=skip_same
        )
