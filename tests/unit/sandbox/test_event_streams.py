"""What is streamed of a job: in which events, and when."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.errors import Busy
from cloister_sandbox.jobs import Ending, Failure, Job, Reason
from cloister_sandbox.outputs import Policy
from cloister_sandbox.services import events as module
from cloister_sandbox.services.events import MAX_READERS, follow

ENDED = Ending(0, Reason.EXITED, 0.0)


def starting() -> Job:
    return Job("x", b"", ("x",), Policy())


def running() -> Job:
    job = starting()
    job.begun.set_result(None)
    return job


async def told(stream: AsyncIterator[exec_pb2.OutputEvent]) -> list[tuple[bool, str | None]]:
    """Of each event whether it says that the job was started, and what else it says."""
    return [(each.HasField("started"), each.WhichOneof("event")) async for each in stream]


async def test_what_ends_soon_is_told_in_one_event() -> None:
    short = starting()
    telling = asyncio.create_task(told(follow(short)))
    await asyncio.sleep(0)
    short.begun.set_result(None)
    short.end(ENDED)
    assert await telling == [(True, "exited")]
    assert await told(follow(short)) == [(True, "exited")]
    assert await told(follow(short, only_now=True)) == [(True, "exited")]


async def test_what_cannot_start_is_told_in_one_event() -> None:
    never = starting()
    telling = asyncio.create_task(told(follow(never)))
    await asyncio.sleep(0)
    never.end(Failure("NOT_FOUND", 2, "x"))
    assert await telling == [(True, "failed")]


async def test_the_first_output_comes_with_the_start() -> None:
    chatty = starting()
    stream = follow(chatty)
    telling = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    chatty.begun.set_result(None)
    chatty.store.add(1, b"word")
    first = await telling
    assert (first.HasField("started"), first.output.data) == (True, b"word")
    chatty.end(ENDED)
    assert await told(stream) == [(False, "exited")]


async def test_a_start_is_told_though_nothing_follows() -> None:
    quiet = running()
    stream = follow(quiet)
    assert await anext(stream) == exec_pb2.OutputEvent(seq=1, started=exec_pb2.Started(id="x"))
    await stream.aclose()
    begins = starting()
    stream = follow(begins)
    telling = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not telling.done()
    begins.begun.set_result(None)
    assert (await telling).HasField("started")
    await stream.aclose()


async def test_a_start_that_waits_for_its_turn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_SECONDS", 0.01)
    waits = starting()
    stream = follow(waits)
    first = await anext(stream)
    assert (first.HasField("started"), first.WhichOneof("event")) == (True, None)
    assert not waits.begun.done()
    await stream.aclose()


async def test_who_may_write_to_it_need_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_SECONDS", 3600.0)
    monkeypatch.setattr(Job, "takes_input", True)
    stream = follow(starting())
    assert (await anext(stream)).HasField("started")
    await stream.aclose()


async def test_what_ends_while_its_start_is_sent_is_told_at_once() -> None:
    """Nobody waits for its end just then."""
    short = running()
    stream = follow(short, heartbeat=3600.0)
    assert (await anext(stream)).WhichOneof("event") is None
    short.end(ENDED)
    assert (await anext(stream)).WhichOneof("event") == "exited"
    await stream.aclose()


async def test_a_quiet_program_shows_that_it_lives() -> None:
    quiet = running()
    kinds = []
    async for event in follow(quiet, heartbeat=0.01):
        kinds.append(event.WhichOneof("event"))
        if kinds[-2:] == ["heartbeat", "heartbeat"]:
            quiet.store.add(1, b"word")
            quiet.end(ENDED)
    assert kinds == [None, "heartbeat", "heartbeat", "output", "exited"]


async def test_readers_who_come_at_once_are_bounded() -> None:
    """Each counts before it has heard anything, and until it is gone."""
    popular = running()
    come = [follow(popular) for _ in range(MAX_READERS + 1)]
    for each in come[:-1]:
        assert (await anext(each)).HasField("started")
    with pytest.raises(Busy, match="64 readers"):
        await anext(come[-1])
    await come[0].aclose()
    later = follow(popular)
    assert (await anext(later)).HasField("started")
    for each in (*come, later):
        await each.aclose()
    assert popular.store.readers == 0


async def test_small_output_is_sent_together() -> None:
    chatty = running()

    async def talk() -> None:
        for _ in range(2000):
            chatty.store.add(1, b"x")
            await asyncio.sleep(0)
        chatty.end(ENDED)

    talking = asyncio.create_task(talk())
    found = [each.output.data async for each in follow(chatty) if each.HasField("output")]
    await talking
    assert sum(map(len, found)) == 2000
    assert len(found) < 1000
