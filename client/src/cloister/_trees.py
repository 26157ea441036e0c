"""Copying files and directories between this machine and a sandbox, as `cp -r` does."""

import asyncio
import os
import shlex
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import grpc

from ._errors import LocalFileError, NotFoundError, call_error
from ._files import Files
from ._models import Entry

# Enough to hide the round trips of small files; each holds a file and a stream open.
_PARALLEL = 8
_DEPTH = 64
_PATHS_PER_COMMAND = 200

Run = Callable[[str], Awaitable[None]]
"""Runs a shell command in the sandbox and raises when it fails."""


async def upload(files: Files, run: Run, source: Path, target: str) -> list[str]:
    """Copy a file or a directory into the sandbox.

    A target that is a directory, or ends in a slash, gets the source under its own name. Symbolic
    links to files are followed. Returns the paths of what was left out: links to directories, and
    what is neither a file nor a directory. Raises LocalFileError and CallError.
    """
    kind = await asyncio.to_thread(_kind, source)
    into = target.endswith("/")
    if not into:
        try:
            into = (await files.stat(target)).type == "directory"
        except NotFoundError:
            into = False
    if into:
        target = str(PurePosixPath(target) / kind.name)
    if not kind.directory:
        await files.upload(source, target)
        return []
    regular, directories, left_out = await asyncio.to_thread(_scan, source)
    root = PurePosixPath(target)
    # Directories of files are made by the uploads; an empty one must be made by itself.
    occupied = {parent for each in regular for parent in each.parents}
    empty = [each for each in directories if each not in occupied]
    for start in range(0, len(empty), _PATHS_PER_COMMAND):
        batch = empty[start : start + _PATHS_PER_COMMAND]
        await run("mkdir -p -- " + shlex.join(str(root / each) for each in batch))
    await _in_parallel(files.upload(source / each, str(root / each)) for each in regular)
    return left_out


async def download(files: Files, source: str, target: Path) -> list[str]:
    """Copy a file or a directory out of the sandbox.

    A target that is a directory gets the source under its own name. Returns the paths of what was
    left out: symbolic links and what is neither a file nor a directory. Whatever the sandbox says,
    nothing is written outside the target. Raises LocalFileError and CallError.
    """
    entry = await files.stat(source)
    if await asyncio.to_thread(target.is_dir):
        target /= PurePosixPath(entry.path).name
    if entry.type != "directory":
        await files.download(source, target)
        return []
    left_out: list[str] = []
    wanted: list[tuple[Entry, Path]] = []
    for each in await files.list(source, _DEPTH):
        place = target / _below(entry.path, each.path)
        if each.type == "directory":
            _make(place)
        elif each.type == "file":
            wanted.append((each, place))
        else:
            left_out.append(each.path)
    _make(target)
    for _, place in wanted:
        _make(place.parent)
    await _in_parallel(files.download(each.path, place) for each, place in wanted)
    return left_out


class _Kind(NamedTuple):
    """What a path of this machine is."""

    name: str
    directory: bool


def _kind(source: Path) -> _Kind:
    if not source.exists():
        raise LocalFileError(f"{source}: no such file or directory")
    return _Kind(source.resolve().name, source.is_dir())


def _scan(root: Path) -> tuple[list[PurePosixPath], list[PurePosixPath], list[str]]:
    """Relative paths of all files and of all directories, and what is left out."""
    regular: list[PurePosixPath] = []
    directories: list[PurePosixPath] = []
    left_out: list[str] = []

    def fail(error: OSError) -> None:
        raise LocalFileError(f"cannot read {error.filename}: {error.strerror}")

    for folder, subfolders, names in os.walk(root, onerror=fail):
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        directories.append(here)
        left_out += [str(Path(folder) / each) for each in subfolders if _is_link(folder, each)]
        for each in names:
            if (Path(folder) / each).is_file():
                regular.append(here / each)
            else:
                left_out.append(str(Path(folder) / each))
    return sorted(regular), sorted(directories), sorted(left_out)


def _is_link(folder: str, name: str) -> bool:
    return (Path(folder) / name).is_symlink()


def _below(root: str, path: str) -> PurePosixPath:
    """The path relative to the root; raises when the sandbox names one that is not below it."""
    root_path, found = PurePosixPath(root), PurePosixPath(path)
    if ".." in found.parts or found == root_path or not found.is_relative_to(root_path):
        raise call_error(grpc.StatusCode.DATA_LOSS, f"the sandbox lists {path} below {root}")
    return found.relative_to(root_path)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalFileError(f"cannot make {directory}: {error.strerror}") from None


async def _in_parallel(copies: Iterable[Awaitable[None]]) -> None:
    """Run them, a few at a time; the first failure stops the rest and is raised."""
    waiting = iter(copies)

    async def work() -> None:
        for each in waiting:
            await each

    workers = [asyncio.create_task(work()) for _ in range(_PARALLEL)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
