"""Threads that look for processes: when none can be started, and when all of them are held up."""

import asyncio
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloister_sandbox import looks
from cloister_sandbox.looks import Looks


class Exhausted(ThreadPoolExecutor):
    """One whose threads cannot be started at first."""

    left = 1

    def _adjust_thread_count(self) -> None:
        if self.left:
            self.left -= 1
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()


@pytest.fixture
def held() -> Iterator[threading.Event]:
    release = threading.Event()
    yield release
    release.set()


async def test_what_was_done_without_a_thread_is_not_done_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pool keeps it in its queue; later it would end what a later command has begun."""
    done: list[str] = []
    made = Looks()
    with Exhausted(1) as pool:
        monkeypatch.setattr(made, "_pool", pool)
        await made.run(lambda: done.append("first"))
        await made.run(lambda: done.append("second"))
        assert await made.run(lambda: done.copy()) == ["first", "second"]


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
