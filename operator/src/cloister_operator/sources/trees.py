"""A commit's files as a tar archive: none leads out of the directory it is unpacked into."""

import io
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from dulwich.object_store import BaseObjectStore
from dulwich.objects import Blob, Commit, ObjectID, Tree, parse_tree

from .work import MAX_ENTRIES, MAX_UNPACKED

MAX_LEVELS = 64
MAX_PATH = 2048
"""Bytes of one path."""
_FORBIDDEN = frozenset({b"", b".", b"..", b".git", b"git~1"})
_MAX_TIME = 2**33


class UnsafeTree(Exception):
    """The repository has an entry that no honest one has; the message says which kind."""


class TooLarge(Exception):
    """It has more than may be fetched; the message says of what."""


@dataclass
class Written:
    """What came into an archive."""

    entries: int = 0
    unpacked: int = 0
    left_out: int = 0


def write(store: BaseObjectStore, commit: Commit, out: BinaryIO) -> Written:
    """Write the archive of a commit's files; submodules become empty directories.

    Raises UnsafeTree, TooLarge, KeyError for objects that are not there.
    """
    written = Written()
    time = min(max(commit.commit_time, 0), _MAX_TIME)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, mode, sha in _walk(store, commit.tree, (), written):
            header = tarfile.TarInfo(b"/".join(path).decode("utf-8", "surrogateescape"))
            header.mtime = time
            if stat.S_ISREG(mode):
                content = _blob(store, sha)
                written.unpacked += len(content)
                if written.unpacked > MAX_UNPACKED:
                    raise TooLarge(f"more than {MAX_UNPACKED >> 20} MiB of files")
                header.size = len(content)
                header.mode = 0o755 if mode & 0o100 else 0o644
                archive.addfile(header, io.BytesIO(content))
            elif stat.S_ISLNK(mode):
                target = _blob(store, sha)
                if not stays_inside(path, target):
                    written.left_out += 1
                    continue
                header.type, header.mode = tarfile.SYMTYPE, 0o777
                header.linkname = target.decode("utf-8", "surrogateescape")
                archive.addfile(header)
            else:
                header.type, header.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(header)
            # Else it would keep every header.
            archive.members.clear()  # type: ignore[attr-defined]
    return written


def stays_inside(path: tuple[bytes, ...], target: bytes) -> bool:
    """Whether a link at `path` leads to something in the tree, whatever other links there are.

    It may climb first and descend then; `..` behind a name could leave through another link.
    """
    if not target or target.startswith(b"/") or b"\0" in target or len(target) > MAX_PATH:
        return False
    steps = [each for each in target.split(b"/") if each not in (b"", b".")]
    up = 0
    while up < len(steps) and steps[up] == b"..":
        up += 1
    return b".." not in steps[up:] and up < len(path) and b".git" not in map(bytes.lower, steps)


def _walk(
    store: BaseObjectStore, tree: ObjectID, above: tuple[bytes, ...], written: Written
) -> Iterator[tuple[tuple[bytes, ...], int, ObjectID]]:
    if len(above) >= MAX_LEVELS:
        raise TooLarge(f"more than {MAX_LEVELS} levels of directories")
    found = store[tree]
    if not isinstance(found, Tree):
        raise UnsafeTree("a directory that is none")
    names = set()
    # As it is: the object itself forgets all but one entry of a name.
    for name, mode, raw in parse_tree(found.as_raw_string(), 20):
        sha = ObjectID(raw)
        written.entries += 1
        if written.entries > MAX_ENTRIES:
            raise TooLarge(f"more than {MAX_ENTRIES} files and directories")
        path = (*above, name)
        _check(name, path)
        if name in names:
            raise UnsafeTree("the same name twice in a directory")
        names.add(name)
        if stat.S_ISDIR(mode):
            yield path, mode, sha
            yield from _walk(store, sha, path, written)
        elif stat.S_ISREG(mode) or stat.S_ISLNK(mode) or mode == 0o160000:
            yield path, mode, sha
        else:
            raise UnsafeTree("an entry that is neither file, link nor directory")


def _check(name: bytes, path: tuple[bytes, ...]) -> None:
    # Whoever copies the tree to another system must not get a .git either.
    if name.lower().rstrip(b" .") in _FORBIDDEN or name.lower() in _FORBIDDEN:
        raise UnsafeTree("an entry called '.', '..' or '.git'")
    if b"/" in name or b"\0" in name:
        raise UnsafeTree("a name with a slash in it")
    if sum(map(len, path)) + len(path) > MAX_PATH or len(name) > 255:
        raise TooLarge("a path that is too long")


def _blob(store: BaseObjectStore, sha: ObjectID) -> bytes:
    found = store[sha]
    if not isinstance(found, Blob):
        raise UnsafeTree("a file that is none")
    return found.data
