"""Copying files and directories between this machine and a sandbox, as `cp -r` does.

Small files travel together as tar archives, large ones by themselves. What is the same on both
sides already is not sent again, so that a copy which was interrupted goes on when it is repeated.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path, PurePosixPath

import grpc

from cloister_api.exec.v1 import exec_pb2

from ._errors import FailedPreconditionError, LocalFileError, NotFoundError, call_error
from ._fetch_file import fetch_file
from ._fetching import Fetch
from ._files import Files, modified_ns
from ._packing import SMALL, Item, batches, pack
from ._places import Place, local_errors
from ._progress import Meter, Progress
from ._threads import finished

# Enough to hide the round trips; each holds a file and a stream open.
PARALLEL = 4
MARK = ".cloister-copy-"

Job = Callable[[], Awaitable[object]]


async def upload(
    files: Files,
    source: Path,
    target: str,
    *,
    progress: Progress | None = None,
    skip_same: bool = True,
) -> list[str]:
    """Copy a file or a directory into the sandbox; see AsyncSession.upload."""
    meter = Meter(progress)
    directory = await asyncio.to_thread(_is_directory, source)
    resolved = await asyncio.to_thread(source.resolve)
    mark = _mark(str(resolved))
    there = await _there(files, target)
    marked = False
    if target.endswith("/") or _is_folder(there):
        marked = directory and await _there(files, f"{target}/{mark}") is not None
        if not marked:
            target = str(PurePosixPath(target) / resolved.name)
            there = await _there(files, target)
    elif directory and there is None:
        await files.write(f"{target}/{mark}", b"", 0o600)
        marked = True
    if directory:
        left_out = await _upload_tree(files, source, target, meter, skip_same=skip_same)
        if marked:
            await files.remove(f"{target}/{mark}")
        return left_out
    name = source.name
    size = (await asyncio.to_thread(source.stat)).st_size
    meter.begin(size)
    await files.upload(source, target, lambda offset: meter.at(name, offset))
    meter.done(name, size)
    return []


async def download(
    files: Files,
    source: str,
    target: Path,
    *,
    progress: Progress | None = None,
    skip_same: bool = True,
) -> list[str]:
    """Copy a file or a directory out of the sandbox; see AsyncSession.download."""
    entry = await files.entry(source)
    mark = target / _mark(f"{files.session_uid} {entry.path}")
    if await asyncio.to_thread(lambda: target.is_dir() and not mark.exists()):
        target /= _own_name(source, entry.path)
        mark = target / mark.name
    meter = Meter(progress)
    if _is_folder(entry):
        listed = await files.entries(source)
        place = await finished(lambda: _marked(target, mark))
        try:
            streams = await files.has("files.tree")
            fetch = Fetch(files, source, entry.path, place, meter, streams=streams)
            left_out = await fetch.run(listed, in_parallel, skip_same=skip_same)
        finally:
            place.close()
        await asyncio.to_thread(lambda: mark.unlink(missing_ok=True))
        return left_out
    place = await finished(lambda: Place(target.parent, make=False))
    try:
        meter.begin(entry.size)
        await fetch_file(files, source, place, (target.name,), meter)
    finally:
        place.close()
    return []


def _mark(source: str) -> str:
    """The file in a directory that a copy has made and not yet filled.

    Without it a repeated copy would take the directory for one that was there before, and copy into
    it under the source's own name, as `cp -r` does.
    """
    return MARK + hashlib.blake2b(os.fsencode(source), digest_size=12).hexdigest()


def _marked(target: Path, mark: Path) -> Place:
    with local_errors("make", target):
        if not target.exists():
            target.mkdir(parents=True)
            mark.touch()
    return Place(target, make=False)


def _is_folder(entry: exec_pb2.Entry | None) -> bool:
    return entry is not None and entry.type == exec_pb2.Entry.TYPE_DIRECTORY


async def _there(files: Files, target: str) -> exec_pb2.Entry | None:
    try:
        return await files.entry(target)
    except NotFoundError:
        return None


def _own_name(source: str, path: str) -> str:
    """What a copy is called: as it was asked for, or else as the sandbox says. That is no hidden
    name, under which a home directory has what programs obey.
    """
    asked, said = PurePosixPath(source).name, PurePosixPath(path).name
    if asked not in ("", ".", ".."):
        return asked
    if said and not said.startswith("."):
        return said
    raise call_error(grpc.StatusCode.DATA_LOSS, f"the sandbox calls a directory {path!r}")


def _is_directory(source: Path) -> bool:
    if not source.exists():
        raise LocalFileError(f"{source}: no such file or directory")
    return source.is_dir()


async def _upload_tree(
    files: Files,
    source: Path,
    target: str,
    meter: Meter,
    *,
    skip_same: bool,
) -> list[str]:
    items, left_out = await finished(lambda: scan(source))
    known = await _known(files, target)
    meter.begin(sum(each.size for each in items))
    wanted = []
    for each in items:
        if not _is_there(each, known.get(each.relative), skip_same=skip_same):
            wanted.append(each)
        elif not each.directory:
            meter.done(each.relative, each.size)

    def sending(item: Item) -> Job:
        async def send() -> None:
            def sent(offset: int) -> None:
                meter.at(item.relative, offset)

            await files.upload(source / item.relative, f"{target}/{item.relative}", sent)
            meter.done(item.relative, item.size)

        return send

    def packing(batch: list[Item]) -> Job:
        async def send() -> None:
            archive = await finished(lambda: pack(source, batch))
            with archive:
                await files.write_tree(target, archive)
            for each in batch:
                if not each.directory:
                    meter.done(each.relative, each.size)

        return send

    large = [each for each in wanted if each.size > SMALL and each.is_text]
    alone = {each.relative for each in large}
    # What an earlier run began with is gone on with first: the server forgets it in a while.
    jobs = [sending(each) for each in large]
    jobs += [packing(each) for each in batches([w for w in wanted if w.relative not in alone])]
    if not known:
        jobs = jobs or [packing([])]  # the directory itself
    await in_parallel(jobs)
    return left_out


async def _known(files: Files, target: str) -> dict[str, exec_pb2.Entry]:
    """What the sandbox has below the target, by its relative path."""
    try:
        root = await files.entry(target)
        listed = await files.entries(target)
    except (NotFoundError, FailedPreconditionError):  # more than can be listed: send all of it
        return {}
    prefix = root.path.rstrip("/") + "/"
    return {each.path.removeprefix(prefix): each for each in listed}


def _is_there(item: Item, entry: exec_pb2.Entry | None, *, skip_same: bool) -> bool:
    if entry is None:
        return False
    if item.directory:
        return entry.type == exec_pb2.Entry.TYPE_DIRECTORY
    return (
        skip_same
        and entry.type == exec_pb2.Entry.TYPE_FILE
        and (entry.size, entry.mode) == (item.size, item.mode)
        # The fraction passes through a float on its way.
        and abs(modified_ns(entry) - item.mtime_ns) < 1000
    )


def scan(root: Path) -> tuple[list[Item], list[str]]:
    """The files and directories below the root, sorted, and what is left out.

    Links to files are followed, those to directories are not. Raises LocalFileError.
    """
    items: list[Item] = []
    left_out: list[str] = []

    def fail(error: OSError) -> None:
        raise LocalFileError(f"cannot read {error.filename}: {error.strerror}")

    for folder, subfolders, names in os.walk(root, onerror=fail):
        here = Path(folder)
        relative = here.relative_to(root).as_posix()
        prefix = "" if relative == "." else relative + "/"
        for each in subfolders:
            if (here / each).is_symlink():
                left_out.append(str(here / each))
                continue
            try:
                info = (here / each).stat()
            except OSError as error:
                fail(error)
            mode, modified = info.st_mode & 0o777, info.st_mtime_ns
            items.append(Item(prefix + each, True, 0, mode, modified))
        for each in names:
            if not (here / each).is_file():
                left_out.append(str(here / each))
                continue
            try:
                info = (here / each).stat()
            except OSError as error:
                fail(error)
            mode, modified = info.st_mode & 0o777, info.st_mtime_ns
            items.append(Item(prefix + each, False, info.st_size, mode, modified))
    return sorted(items, key=lambda each: each.relative), sorted(left_out)


async def in_parallel(jobs: Iterable[Job]) -> None:
    """Run them, a few at a time; the first failure stops the rest and is raised."""
    waiting = iter(jobs)

    async def work() -> None:
        for each in waiting:
            await each()

    workers = [asyncio.create_task(work()) for _ in range(PARALLEL)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
