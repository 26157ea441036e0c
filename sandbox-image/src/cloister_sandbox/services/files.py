"""cloister.exec.v1.Files."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from cloister_api.exec.v1 import exec_pb2

from .. import beneath, changes, texts, watches
from ..edits import MAX_EDITS, MAX_STRINGS, edit
from ..entries import entry, read_link, shown
from ..errors import Busy, InvalidField, WrongState
from ..failures import failed, open_file, resolve, writable_entry
from ..finds import find
from ..greps import grep
from ..lanes import Lanes
from ..paths import Roots
from ..replays import Replays
from ..state import Activity, ServerState
from ..toolset.patterns import BadPattern, Pattern
from ..walks import TooLarge, walk
from .common import MAX_ID, require_claimed, streaming, unary
from .transfers import Transfers

CAPABILITIES = (
    "files",
    "files.edit",
    "files.search",
    "files.resume",
    "files.tree",
    "files.watch",
    *(("openat2",) if beneath.HAS_OPENAT2 else ()),
)
MAX_DEPTH = 64
MAX_TEXT = 1_048_576
MAX_GLOB = 10_000
MAX_GLOB_BYTES = 3_000_000
"""Bytes of the paths of one answer: it has to fit into a message."""
MAX_GLOB_SECONDS = MAX_READ_SECONDS = 60.0
MAX_MATCHES = 100_000
MAX_CONTEXT = 50
MAX_GREP_SECONDS = 600.0
MAX_GREPS = 8
MAX_WATCHES = 32
HEARTBEAT_SECONDS = 10.0
COALESCE_SECONDS = 0.02
"""Changes that follow each other this closely are told together."""
_BATCH = 256
_EVENTS = {
    watches.Change.CREATED: exec_pb2.WatchEvent.TYPE_CREATED,
    watches.Change.MODIFIED: exec_pb2.WatchEvent.TYPE_MODIFIED,
    watches.Change.REMOVED: exec_pb2.WatchEvent.TYPE_REMOVED,
    watches.Change.OVERFLOW: exec_pb2.WatchEvent.TYPE_OVERFLOW,
}


class FilesService(Transfers):
    """Thin: checks requests; the work is done in threads, beneath the permitted directories."""

    def __init__(self, state: ServerState, roots: Roots, activity: Activity) -> None:
        super().__init__(state, roots, activity, Lanes())
        self._edits: Replays[exec_pb2.EditResult] = Replays()
        self._editing = threading.Lock()
        self._greps = self._watches = 0

    @unary
    async def Stat(self, request: exec_pb2.StatRequest, context: Any) -> Any:  # noqa: ARG002, N802
        require_claimed(self._state)
        with self._activity:
            return await self._lanes.quick.run(self._stat, request.path)

    def _stat(self, path: str) -> exec_pb2.Entry:
        resolved = resolve(self._roots, path)
        try:
            with self._roots.parent(resolved) as (above, name):
                info = os.stat(name, dir_fd=above, follow_symlinks=False)
                return entry(resolved, info, read_link(name, above, info))
        except OSError as error:
            raise failed(path, error) from None

    @streaming
    async def List(self, request: exec_pb2.ListRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        require_claimed(self._state)
        depth = request.depth or 1
        if depth > MAX_DEPTH:
            raise InvalidField("depth", f"must be at most {MAX_DEPTH}")
        with self._activity:
            walked = self._list(request.path, depth)
            async with contextlib.aclosing(self._lanes.slow.batches(walked, _BATCH)) as batches:
                async for batch in batches:
                    for each in batch:
                        yield each

    def _list(self, path: str, depth: int) -> Iterator[exec_pb2.Entry]:
        resolved = resolve(self._roots, path)
        try:
            directory = self._roots.directory(resolved)
            try:
                for found in walk(directory, depth):
                    link = read_link(found.name, found.directory, found.info)
                    yield entry(f"{resolved}/{found.relative}", found.info, link)
            finally:
                os.close(directory)
        except OSError as error:
            raise failed(path, error) from None
        except TooLarge as bound:
            path = shown(path)
            raise WrongState("TREE_TOO_LARGE", f"{path} has {bound}", path=path) from None

    @unary
    async def ReadText(self, request: exec_pb2.ReadTextRequest, context: Any) -> Any:  # noqa: N802
        require_claimed(self._state)
        if request.max_bytes > MAX_TEXT:
            raise InvalidField("max_bytes", f"must be at most {MAX_TEXT}")
        if 0 < request.end_line < request.start_line:
            raise InvalidField("end_line", "must not be before start_line")
        with self._activity:
            return await self._lanes.slow.run(self._read_text, request, _gone(context))

    def _read_text(self, request: exec_pb2.ReadTextRequest, gone: Any) -> exec_pb2.TextSlice:
        deadline = time.monotonic() + MAX_READ_SECONDS
        fd, _ = open_file(self._roots, request.path)
        try:
            lines = texts.read_lines(
                fd,
                request.start_line,
                request.end_line,
                request.max_bytes or 262_144,
                lambda: gone() or time.monotonic() > deadline,
            )
        except OSError as error:
            raise failed(request.path, error) from None
        finally:
            os.close(fd)
        text = texts.decoded(lines.data, cut=lines.truncated)
        if text is None:
            path = shown(request.path)
            raise WrongState("NOT_TEXT", f"{path} is not UTF-8 text", path=path)
        return exec_pb2.TextSlice(
            text=text,
            total_lines=lines.total,
            size=lines.size,
            etag=lines.etag,
            truncated=lines.truncated,
        )

    @unary
    async def Edit(self, request: exec_pb2.EditRequest, context: Any) -> Any:  # noqa: ARG002, N802
        require_claimed(self._state)
        if not 1 <= len(request.edits) <= MAX_EDITS:
            raise InvalidField("edits", f"must be 1 to {MAX_EDITS}")
        if len(request.request_id) > MAX_ID:
            raise InvalidField("request_id", f"must have at most {MAX_ID} characters")

        async def work() -> exec_pb2.EditResult:
            with self._activity:
                return await self._lanes.slow.run(self._edit, request)

        size = sum(len(each.old_string) + len(each.new_string) for each in request.edits)
        if size > MAX_STRINGS:
            raise InvalidField("edits", f"must have at most {MAX_STRINGS} characters together")
        payload = request.SerializeToString(deterministic=True)
        return await self._edits.run(request.request_id, payload, work)

    def _edit(self, request: exec_pb2.EditRequest) -> exec_pb2.EditResult:
        with self._editing:  # two edits of one file: the second sees what the first has written
            return edit(self._roots, self._uploads, request)

    @unary
    async def Glob(self, request: exec_pb2.GlobRequest, context: Any) -> Any:  # noqa: N802
        require_claimed(self._state)
        limit = request.limit or 200
        if limit > MAX_GLOB:
            raise InvalidField("limit", f"must be at most {MAX_GLOB}")
        if request.pattern.startswith("/") or ".." in request.pattern.split("/"):
            raise InvalidField("pattern", "must be relative and without '..'")
        try:
            pattern = Pattern(request.pattern)
        except BadPattern as error:
            raise InvalidField("pattern", str(error)) from None
        with self._activity:
            return await self._lanes.slow.run(
                self._glob, request.path, pattern, limit, _gone(context)
            )

    def _glob(self, path: str, pattern: Pattern, limit: int, gone: Any) -> exec_pb2.GlobResult:
        deadline = time.monotonic() + MAX_GLOB_SECONDS
        resolved = resolve(self._roots, path or ".")
        try:
            matches, total = find(
                self._roots,
                resolved,
                pattern,
                limit,
                lambda: gone() or time.monotonic() > deadline,
            )
        except TooLarge as bound:
            path = shown(path)
            raise WrongState("TREE_TOO_LARGE", f"{path} has {bound}", path=path) from None
        result = exec_pb2.GlobResult(total_matches=total)
        room = MAX_GLOB_BYTES
        for each in matches:
            described = entry(each.path, each.info, each.link)
            room -= described.ByteSize()
            if room < 0:
                break
            result.entries.append(described)
        return result

    @streaming
    async def Grep(self, request: exec_pb2.GrepRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        require_claimed(self._state)
        limit = request.max_matches or 1000
        seconds = request.timeout.seconds + request.timeout.nanos / 1e9 or 30.0
        if limit > MAX_MATCHES:
            raise InvalidField("max_matches", f"must be at most {MAX_MATCHES}")
        if request.context_lines > MAX_CONTEXT:
            raise InvalidField("context_lines", f"must be at most {MAX_CONTEXT}")
        if not 0 < seconds <= MAX_GREP_SECONDS:
            raise InvalidField("timeout", f"must be at most {MAX_GREP_SECONDS:g} s")
        if self._greps >= MAX_GREPS:
            why = f"{MAX_GREPS} searches are under way"
            raise Busy("TOO_MANY_SEARCHES", why, 1.0, "searches", MAX_GREPS)
        gone = _gone(context)
        self._greps += 1
        try:
            with self._activity:
                resolved = await self._lanes.quick.run(resolve, self._roots, request.path or ".")
                env = dict(self._state.environment)
                events = grep(self._roots, request, resolved, env, limit, seconds, gone)
                searched = self._lanes.search.batches(events, _BATCH)
                async with contextlib.aclosing(searched) as batches:
                    async for batch in batches:
                        for event in batch:
                            yield event
        finally:
            self._greps -= 1

    @unary
    async def Move(self, request: exec_pb2.MoveRequest, context: Any) -> Any:  # noqa: ARG002, N802
        require_claimed(self._state)
        with self._activity:
            return await self._lanes.quick.run(self._move, request)

    def _move(self, request: exec_pb2.MoveRequest) -> exec_pb2.Entry:
        source = writable_entry(self._roots, request.source, "source")
        target = writable_entry(self._roots, request.destination, "destination")
        return changes.move(self._roots, request, source, target)

    @unary
    async def Remove(self, request: exec_pb2.RemoveRequest, context: Any) -> Any:  # noqa: N802
        require_claimed(self._state)
        gone = _gone(context)
        with self._activity:
            await self._lanes.slow.run(self._remove, request, gone)
            return exec_pb2.RemoveResponse()

    def _remove(self, request: exec_pb2.RemoveRequest, gone: Any) -> None:
        resolved = writable_entry(self._roots, request.path)
        changes.remove(
            self._roots, request.path, resolved, recursive=request.recursive, stopped=gone
        )

    @streaming
    async def Watch(self, request: exec_pb2.WatchRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        require_claimed(self._state)
        if self._watches >= MAX_WATCHES:
            why = f"{MAX_WATCHES} watches are set"
            raise Busy("TOO_MANY_WATCHES", why, 10.0, "watches", MAX_WATCHES)
        gone = _gone(context)
        self._watches += 1
        try:
            # A watch is no activity: a sandbox in which nothing happens is idle though it is seen.
            resolved = await self._lanes.quick.run(resolve, self._roots, request.path)
            watch = await self._lanes.watch.open(
                lambda: watches.Watch(
                    self._roots, request.path, resolved, recursive=request.recursive
                ),
                watches.Watch.close,
            )
            try:
                yield exec_pb2.WatchEvent(type=exec_pb2.WatchEvent.TYPE_READY, path=shown(resolved))
                async with contextlib.aclosing(self._follow(watch, gone)) as events:
                    async for event in events:
                        yield event
            finally:
                watch.close()
        finally:
            self._watches -= 1

    async def _follow(
        self, watch: watches.Watch, gone: Any
    ) -> AsyncGenerator[exec_pb2.WatchEvent, None]:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        working: asyncio.Future[Any] | None = None
        try:
            while not watch.ended:
                ready.clear()
                try:
                    loop.add_reader(watch.fd, ready.set)
                except OSError:
                    why = "tools have taken all that this sandbox may wait for"
                    raise Busy("OUT_OF_RESOURCES", why, 1.0, "processes") from None
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await ready.wait()
                except TimeoutError:
                    yield exec_pb2.WatchEvent(type=exec_pb2.WatchEvent.TYPE_HEARTBEAT)
                    continue
                finally:
                    loop.remove_reader(watch.fd)
                await asyncio.sleep(COALESCE_SECONDS)
                working = self._lanes.watch.submit(lambda: watch.changes(gone))
                for change, path in await asyncio.shield(working):
                    yield exec_pb2.WatchEvent(type=_EVENTS[change], path=shown(path))
        finally:
            if working is not None:  # its thread uses the descriptors that are closed next
                with contextlib.suppress(Exception):
                    await asyncio.shield(working)


def _gone(context: Any) -> Any:
    """A function for threads that says whether the caller has gone away."""
    gone = threading.Event()
    context.add_done_callback(lambda _: gone.set())
    return gone.is_set
