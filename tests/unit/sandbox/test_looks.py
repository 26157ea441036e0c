"""Threads that look for processes: when none can be started, and when all of them are held up."""

import asyncio
import functools
import threading
from collections.abc import Iterator

import pytest

from cloister_sandbox import looks
from cloister_sandbox.looks import Looks


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def held() -> Iterator[threading.Event]:
    release = threading.Event()
    yield release
    release.set()


async def test_without_a_thread_it_is_done_at_once_and_not_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Later it would end what a later command has begun."""
    done: list[threading.Thread] = []

    def note() -> None:
        done.append(threading.current_thread())

    made = Looks()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        await made.run(note)
        assert done == [threading.main_thread()]
    await made.run(note)
    assert len(done) == 2
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        # What takes long is left to the threads that there are.
        await asyncio.gather(*(made.run(note) for _ in range(20)))
    assert threading.main_thread() not in done[1:]
    assert len(done) == 22


async def test_who_holds_up_all_looks_keeps_nobody_from_the_next(
    monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    """A process that ends while it is looked at can have whoever looks wait for a connection."""
    monkeypatch.setattr(looks, "HELD_UP_SECONDS", 0.05)
    made, done = Looks(), list[int]()
    async with asyncio.timeout(30):
        stuck = [asyncio.create_task(made.run(held.wait)) for _ in range(3 * looks._THREADS)]
        await asyncio.gather(*(made.run(functools.partial(done.append, at)) for at in range(20)))
        assert sorted(done) == list(range(20)), "each is done once"
        assert not any(each.done() for each in stuck)
        held.set()
        assert all(await asyncio.gather(*stuck))
    assert sorted(done) == list(range(20))


async def test_a_look_whose_caller_is_gone_is_not_begun(held: threading.Event) -> None:
    made, done = Looks(), list[str]()
    async with asyncio.timeout(30):
        stuck = [asyncio.create_task(made.run(held.wait)) for _ in range(looks._THREADS)]
        gone = asyncio.create_task(made.run(lambda: done.append("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        held.set()
        await asyncio.gather(*stuck)
        await made.run(lambda: done.append("next"))
    assert done == ["next"]
