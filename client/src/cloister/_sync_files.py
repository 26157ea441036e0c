"""Files and Watch: the asynchronous ones, for programs without an event loop."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ._file_results import Change, EditResult, GlobResult, GrepResult, Replacement, TextSlice
from ._models import Entry
from ._sync_loop import run as _run
from ._sync_loop import step as _step
from ._workspace import AsyncFiles, AsyncWatch


class Files:
    """Files of a session for programs, from Session.files; do not make one yourself.

    Methods, errors and retries are those of AsyncFiles.
    """

    def __init__(self, files: AsyncFiles) -> None:
        self._async = files

    def read_text(
        self, path: str, *, first: int = 1, last: int | None = None, max_bytes: int = 262_144
    ) -> TextSlice:
        """Lines of a text file; see AsyncFiles.read_text."""
        return _run(
            lambda: self._async.read_text(path, first=first, last=last, max_bytes=max_bytes)
        )

    def edit(
        self,
        path: str,
        edits: Sequence[Replacement],
        *,
        if_etag: str = "",
        request_id: str | None = None,
    ) -> EditResult:
        """Replace strings in a text file: all of them, or none; see AsyncFiles.edit."""
        return _run(lambda: self._async.edit(path, edits, if_etag=if_etag, request_id=request_id))

    def glob(self, pattern: str, path: str = "", *, limit: int = 200) -> GlobResult:
        """Find files by a pattern; see AsyncFiles.glob."""
        return _run(lambda: self._async.glob(pattern, path, limit=limit))

    def grep(
        self,
        pattern: str,
        path: str = "",
        *,
        glob: str = "",
        ignore_case: bool = False,
        context_lines: int = 0,
        include_ignored: bool = False,
        max_matches: int = 1000,
        timeout: float = 30.0,
    ) -> GrepResult:
        """Search files for a regular expression; see AsyncFiles.grep."""
        return _run(
            lambda: self._async.grep(
                pattern,
                path,
                glob=glob,
                ignore_case=ignore_case,
                context_lines=context_lines,
                include_ignored=include_ignored,
                max_matches=max_matches,
                timeout=timeout,
            )
        )

    def move(self, source: str, destination: str, *, overwrite: bool = False) -> Entry:
        """Rename a file or directory; see AsyncFiles.move."""
        return _run(lambda: self._async.move(source, destination, overwrite=overwrite))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; recursive: with all that is in it."""
        _run(lambda: self._async.remove(path, recursive=recursive))

    def watch(self, path: str = ".", *, recursive: bool = False) -> "Watch":
        """Follow changes below a path; see AsyncFiles.watch."""
        return Watch(self._async.watch(path, recursive=recursive))


class Watch:
    """Changes below a path, from Files.watch; do not make one yourself.

    As AsyncWatch, with `with` and `for`.
    """

    def __init__(self, watch: AsyncWatch) -> None:
        self._async = watch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        change = _step(self._async)
        if change is None:
            raise StopIteration
        return change

    def __enter__(self) -> Self:
        _run(self._async.__aenter__)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _run(lambda: self._async.__aexit__(kind, error, traceback), ending=True)
