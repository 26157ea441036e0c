"""Threads that cannot be started, because tools have filled the table of processes."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from cloister_sandbox.lanes import MAX_WAITING, Lane
from cloister_sandbox.outputs import MAX_LATE, OutputStore, Policy
from cloister_sandbox.sources import STDOUT
from cloister_sandbox.threads import Threads, prepare


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nobody can start a thread until this is undone."""
    with monkeypatch.context() as table:
        table.setattr(threading.Thread, "start", refuse)
        yield table


def refuse(_: threading.Thread) -> None:
    """As the kernel does, in Python's words."""
    raise RuntimeError("can't start new thread")


async def test_a_lane_without_threads_is_not_full_afterwards(full: pytest.MonkeyPatch) -> None:
    """Callers try again while there is no room; their attempts count for nothing."""
    lane = Lane("quick", 1)
    for _ in range(2 * MAX_WAITING):
        with pytest.raises(RuntimeError):
            await lane.run(lambda: None)
    full.undo()
    assert await lane.run(lambda: "answered") == "answered"


async def test_what_failed_for_want_of_a_thread_is_not_done_later(
    full: pytest.MonkeyPatch,
) -> None:
    """Its caller was told so, and may have written the file again."""
    done: list[str] = []
    lane = Lane("quick", 1)
    with pytest.raises(RuntimeError):
        await lane.run(done.append, "failed")
    full.undo()
    await lane.run(done.append, "done")
    assert done == ["done"]


async def test_one_thread_does_the_work_of_those_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    with Threads(4) as pool:
        await loop.run_in_executor(pool, int)
        go_on = threading.Event()
        held = loop.run_in_executor(pool, go_on.wait)
        with monkeypatch.context() as table:
            table.setattr(threading.Thread, "start", refuse)
            behind = [loop.run_in_executor(pool, int) for _ in range(4)]
        go_on.set()
        assert await asyncio.gather(*behind) == [0] * 4
        assert await held


async def test_a_program_goes_on_printing_when_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What memory does not keep is written by a thread, for which the program waits."""
    await prepare()
    going = asyncio.Event()
    store = OutputStore(Policy(spool=8 * MAX_LATE), going.clear, going.set)
    with monkeypatch.context() as table:
        table.setattr(threading.Thread, "start", refuse)
        store.add(STDOUT, b"x" * (2 * MAX_LATE))
        assert not going.is_set()
        async with asyncio.timeout(30):
            await going.wait()
    store.close()
