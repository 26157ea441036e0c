"""Lanes: what is slow in one holds up no other, and what waits is bounded."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import greps, lanes, watches
from cloister_sandbox.errors import Busy, WrongState
from cloister_sandbox.lanes import Lane, Lanes
from cloister_sandbox.paths import Roots
from cloister_sandbox.ripgrep import NotInstalled
from cloister_sandbox.services.files import MAX_GREPS, FilesService
from cloister_sandbox.state import Activity, Phase, ServerState
from support.eventually import until


async def test_slow_work_holds_up_nobody_else() -> None:
    shared, go_on = Lanes(), threading.Event()
    slow = [shared.slow.submit(go_on.wait) for _ in range(10)]
    bulk = [shared.bulk.submit(go_on.wait) for _ in range(10)]
    assert await shared.quick.run(lambda: "answered") == "answered"
    assert not any(each.done() for each in slow + bulk)
    go_on.set()
    await asyncio.gather(*slow, *bulk)


class Caller:
    """A call's context, as far as a handler asks it."""

    def add_done_callback(self, _: object) -> None:
        """It never ends by itself."""

    async def write(self, message: Any) -> None:
        """Take a message."""


async def test_what_watches_have_to_look_through_holds_up_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools decide how many files there are, and how often they change."""
    go_on = threading.Event()

    def look(*_: object, **__: object) -> None:
        go_on.wait()
        raise Busy("TREE_TOO_LARGE", "too many files to look through", 60.0, "watch-time")

    monkeypatch.setattr(watches.Watch, "__init__", look)
    (tmp_path / "f").write_text("text")
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    request = exec_pb2.WatchRequest(path=str(tmp_path))
    watching = [asyncio.create_task(files.Watch(request, Caller())) for _ in range(8)]
    try:
        async with asyncio.timeout(30):
            await asyncio.sleep(0)
            read = await files.ReadText(exec_pb2.ReadTextRequest(path="f"), Caller())
        assert read.text == "text"
    finally:
        go_on.set()
        for each in watching:
            each.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def test_searches_that_are_kept_from_starting_hold_up_no_other_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that stops all that it sees hits ripgrep before it runs."""
    go_on = threading.Event()

    def stopped(*_: object, **__: object) -> None:
        go_on.wait()
        raise NotInstalled

    monkeypatch.setattr(greps, "Search", stopped)
    (tmp_path / "f").write_text("text")
    service = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    request = exec_pb2.GrepRequest(pattern="x")
    grep = FilesService.Grep.__wrapped__.__wrapped__  # type: ignore[attr-defined]

    async def search() -> None:
        with pytest.raises(WrongState):
            await anext(grep(service, request, Caller()))

    searches = [asyncio.create_task(search()) for _ in range(MAX_GREPS)]
    try:
        async with asyncio.timeout(30):
            await until(lambda: service._lanes.search._under_way == MAX_GREPS)
            read = await service.ReadText(exec_pb2.ReadTextRequest(path="f"), Caller())
        assert read.text == "text"
    finally:
        go_on.set()
    await asyncio.gather(*searches)


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_WAITING", 2)
    lane, go_on = Lane("test", 2), threading.Event()
    under_way = [lane.submit(go_on.wait) for _ in range(4)]
    with pytest.raises(Busy, match="waiting"):
        lane.submit(go_on.wait)
    go_on.set()
    await asyncio.gather(*under_way)
    assert await lane.run(lambda: 1) == 1


async def test_a_generator_is_closed_when_its_reader_goes_away() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int | None]:
        try:
            number = 0
            while True:
                yield number
                yield None
                number += 1
        finally:
            closed.set()

    lane = Lane("test", 1)
    batches = lane.batches(endless(), 10)
    assert [await anext(batches) for _ in range(3)] == [[0], [1], [2]]
    await batches.aclose()
    assert closed.is_set()


async def test_what_nobody_waits_for_any_more_is_closed() -> None:
    go_on, closed = threading.Event(), asyncio.Event()
    lane = Lane("test", 1)

    def opening() -> str:
        go_on.wait()
        return "opened"

    task = asyncio.ensure_future(lane.open(opening, lambda _: closed.set()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.wait_for(closed.wait(), 20)
