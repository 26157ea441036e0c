"""Fetching a tree: which directories come as a stream of all their files, and which files alone."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import grpc

from cloister_api.exec.v1 import exec_pb2

from ._errors import NotFoundError, call_error
from ._fetch_file import fetch_file
from ._files import Files, modified_ns
from ._places import Place, checked
from ._progress import Meter
from ._threads import finished
from ._unpacking import Member, Unpacker

_LARGE = 16 * 1024 * 1024
"""A larger file is worth going on with after a loss, which a stream of many files cannot be."""
_CALL = 128 * 1024
"""Bytes that travel in about the time that one more call takes."""
_FEW = 4
_ENVELOPE = 8 * 1024
"""Bytes that headers and padding of one file may have in a stream."""
_GROWTH = 64 * 1024 * 1024
"""Bytes by which a tree may grow while it is read, besides its own size."""
_CUTS = 5
_LONGEST = 64 * 1024
"""Characters of a path that is listed."""
_UNLISTED = 128 * 1024 * 1024
"""Bytes of the names of directories that are in streams and in no list."""
_SHOWN = 200
"""Characters of a name in an error."""
_HELD = 512
"""Bytes that each of them counts besides its name."""

Job = Callable[[], Awaitable[object]]
InParallel = Callable[[Iterable[Job]], Awaitable[None]]


@dataclass
class _Folder:
    """A directory with the sums of all that is below it."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    count: int = 0
    total: int = 0
    needed: int = 0
    large: int = 0
    small: int = 0
    calls: int = 0
    """What fetching its own files one by one costs, in bytes as all costs."""
    cost: int = 0
    stream: bool = False
    nameless: bool = False
    """Whether it holds a needed name that cannot be asked for: only a stream carries it."""


class Fetch:
    """One tree, on its way into a directory of this machine."""

    def __init__(
        self,
        files: Files,
        source: str,
        root: str,
        place: Place,
        meter: Meter,
        *,
        streams: bool,
    ) -> None:
        self._files = files
        self._source = source.rstrip("/")
        self._root = root
        self._place = place
        self._meter = meter
        self._streams = streams
        """Whether the server sends directories as streams; files come one by one otherwise."""
        self._entries: dict[str, exec_pb2.Entry] = {}
        self._cuts: Counter[str] = Counter()
        """Directories whose stream was cut: they come in smaller portions from then on."""
        self._alone: set[str] = set()
        """Files that changed while their stream was read, and must come by themselves."""
        self._arrived: set[str] = set()
        self._modes: list[tuple[str, int]] = []
        self._unlisted = _UNLISTED

    async def run(
        self, listed: list[exec_pb2.Entry], in_parallel: InParallel, *, skip_same: bool
    ) -> list[str]:
        """Copy what was listed; returns what was left out."""
        left_out: list[str] = []
        folders = {""}
        for each in listed:
            relative = below(self._root, each.path)
            if _parent(relative) not in folders:
                # With all above it, it would take as much memory as its length squared.
                raise call_error(
                    grpc.StatusCode.DATA_LOSS,
                    f"the sandbox lists {relative[:_SHOWN]!r}, and not the directory that it is in",
                )
            if each.type == exec_pb2.Entry.TYPE_DIRECTORY:
                folders.add(relative)
            if each.type in (exec_pb2.Entry.TYPE_FILE, exec_pb2.Entry.TYPE_DIRECTORY):
                self._entries[relative] = each
            else:
                left_out.append(each.path)
        needed = {name for name, each in self._entries.items() if _is_file(each)}
        self._meter.begin(sum(self._entries[each].size for each in needed))
        await finished(self._make_directories)
        if skip_same:
            complete = await finished(lambda: {each for each in needed if self._is_complete(each)})
            needed -= complete
            for name in sorted(complete):
                self._meter.done(name, self._entries[name].size)
        while needed:
            self._arrived = set()
            cuts = self._cuts.total()
            jobs, streams = self._plan(needed)
            await in_parallel(jobs)
            if not streams:
                break
            needed = await self._again(needed, was_cut=self._cuts.total() > cuts)
        await finished(self._set_modes)
        return left_out

    def _make_directories(self) -> None:
        for name, each in self._entries.items():
            parts = PurePosixPath(name).parts
            if not _is_file(each) and "\ufffd" not in name and self._place.look(parts) is None:
                self._place.make(parts)
                self._modes.append((name, each.mode))

    def _made(self, member: Member) -> None:
        """A stream has a directory that no list had: it was made since, or has no proper name."""
        name = "/".join(member.parts)
        self._unlisted -= len(name) + _HELD
        if self._unlisted < 0:
            raise call_error(
                grpc.StatusCode.DATA_LOSS,
                "the sandbox sends more directories that it does not list than are taken",
            )
        self._modes.append((name, member.mode))

    def _set_modes(self) -> None:
        for name, mode in reversed(self._modes):
            self._place.set_mode(name.split("/"), mode)

    def _is_complete(self, name: str) -> bool:
        entry = self._entries[name]
        found = self._place.look(PurePosixPath(name).parts)
        return (
            found is not None
            and (found.st_mode & 0o170777, found.st_size) == (0o100000 | entry.mode, entry.size)
            and abs(found.st_mtime_ns - modified_ns(entry)) < 1000
        )

    def _plan(self, needed: set[str]) -> tuple[list[Job], int]:
        """The calls that bring what is needed, and how many of them are streams."""
        folders = self._sums(needed)
        singles: list[Job] = []
        streams: list[Job] = []
        pending = [""]
        while pending:
            name = pending.pop()
            folder = folders[name]
            if not folder.needed:
                continue
            if folder.stream:
                streams.append(self._streaming(name, folder, needed))
                alone = self._alone & needed
                singles += [self._single(each) for each in alone if _is_below(each, name)]
                continue
            singles += [self._single(each) for each in folder.files if each in needed]
            pending += folder.folders
        return [*singles, *streams], len(streams)

    def _weigh(self, name: str, folders: dict[str, _Folder]) -> None:
        """Decide between one stream of all there is, and a call for each file and folder."""
        folder = folders[name]
        stream = _CALL + folder.total + folder.large
        inner = [folders[each] for each in folder.folders]
        apart = folder.calls + sum(each.cost for each in inner if each.needed)
        if folder.nameless:
            if self._cuts[name] >= _CUTS:
                raise call_error(
                    grpc.StatusCode.UNAVAILABLE,
                    f"the stream of {self._path(name)} was cut {_CUTS} times",
                )
            folder.stream = True
        else:
            folder.stream = (
                self._streams and not self._cuts[name] and folder.small >= _FEW and stream <= apart
            )
        folder.cost = stream if folder.stream else apart

    def _sums(self, needed: set[str]) -> dict[str, _Folder]:
        folders = {"": _Folder()}

        def folder_of(name: str) -> _Folder:
            if name not in folders:
                folders[name] = _Folder()
                folder_of(_parent(name)).folders.append(name)
            return folders[name]

        for name, each in self._entries.items():
            if not _is_file(each):
                folder_of(name).count += 1
                continue
            folder = folder_of(_parent(name))
            folder.count += 1
            folder.total += each.size
            if name not in needed:
                continue
            folder.files.append(name)
            folder.needed += 1
            folder.calls += each.size + _CALL
            if name in self._alone or each.size > _LARGE:
                folder.large += each.size
            else:
                folder.small += 1
            # Of a directory without a proper name the stream begins above.
            if "\ufffd" in name:
                clean = name[: name.index("\ufffd")].rpartition("/")[0]
                folder_of(clean).nameless = True
        for name in sorted(folders, key=_level, reverse=True):
            self._weigh(name, folders)
            if name:
                inner, outer = folders[name], folders[_parent(name)]
                outer.count += inner.count
                outer.total += inner.total
                outer.needed += inner.needed
                outer.large += inner.large
                outer.small += inner.small
        return folders

    def _single(self, name: str) -> Job:
        async def fetch() -> None:
            parts = PurePosixPath(name).parts
            try:
                await fetch_file(self._files, self._path(name), self._place, parts, self._meter)
            except NotFoundError:
                self._meter.done(name, self._entries[name].size)  # removed since it was listed

        return fetch

    def _streaming(self, name: str, folder: _Folder, needed: set[str]) -> Job:
        prefix = PurePosixPath(name).parts
        arrived: list[str] = []

        def wanted(member: Member) -> bool:
            shown = _shown(member)
            known = self._entries.get(shown)
            return shown not in self._alone and (known is None or shown in needed)

        def time(member: Member) -> int:
            known = self._entries.get(_shown(member))
            if known and (known.size, known.mtime.seconds) == (member.size, member.seconds):
                return modified_ns(known)
            return member.seconds * 10**9

        def came(_: int) -> None:
            for each in arrived:
                if each in self._entries:
                    self._arrived.add(each)
                    self._meter.done(each, self._entries[each].size)
            arrived.clear()

        async def fetch() -> None:
            unpacker = Unpacker(
                self._place,
                prefix,
                wanted=wanted,
                time=time,
                arrived=lambda member: arrived.append(_shown(member)),
                made=self._made,
                limit=2 * folder.total + folder.count * _ENVELOPE + _GROWTH,
            )
            try:
                if await self._files.read_tree(self._path(name), unpacker.feed, came):
                    unpacker.end()
                else:
                    self._cuts[name] += 1
            finally:
                await finished(unpacker.close)
                came(0)

        return fetch

    async def _again(self, needed: set[str], *, was_cut: bool) -> set[str]:
        """What has to be fetched once more: what a stream did not bring, or changed meanwhile."""
        now = {}
        for each in await self._files.entries(self._source):
            if _is_file(each):
                now[below(self._root, each.path)] = each
        there = needed & now.keys()
        changed = {each for each in there if now[each].etag != self._entries[each].etag}
        self._entries.update({each: now[each] for each in there})
        # What came alone was checked as it came.
        others = there - self._arrived
        missing = await finished(lambda: {each for each in others if not self._is_complete(each)})
        again = missing | (changed & self._arrived)
        # Only a cut explains why a stream did not bring a file: it may come in the next stream.
        alone = again if not was_cut else again & self._arrived
        for name in alone:
            if "\ufffd" in name:
                raise call_error(
                    grpc.StatusCode.DATA_LOSS, f"{self._path(name)} changed while it was read"
                )
        self._alone |= alone
        return again

    def _path(self, name: str) -> str:
        return f"{self._source or '/'}/{name}" if name else self._source or "/"


def below(root: str, path: str) -> str:
    """The path relative to the root; raises when the sandbox names one that is not below it."""
    if len(path) > _LONGEST:
        raise call_error(
            grpc.StatusCode.DATA_LOSS,
            f"the sandbox lists a path of {len(path)} characters: {path[:_SHOWN]!r}",
        )
    root_path, found = PurePosixPath(root), PurePosixPath(path)
    if ".." in found.parts or found == root_path or not found.is_relative_to(root_path):
        raise call_error(grpc.StatusCode.DATA_LOSS, f"the sandbox lists {path} below {root}")
    return "/".join(checked(found.relative_to(root_path).parts))


def _is_file(entry: exec_pb2.Entry) -> bool:
    return entry.type == exec_pb2.Entry.TYPE_FILE


def _level(name: str) -> int:
    return name.count("/") + 1 if name else 0


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(folder + "/")


def _shown(member: Member) -> str:
    """The member's name as a listing has it."""
    name = "/".join(member.parts)
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
