"""The store of what a program prints: what is kept, who waits for whom, and how it is streamed."""

import asyncio
import os
from collections.abc import Callable
from typing import NoReturn

import pytest

from cloister_sandbox import jobs as module
from cloister_sandbox import outputs, spool
from cloister_sandbox.errors import Busy, NotFound
from cloister_sandbox.jobs import MEMORY, Ending, Job, Jobs, Reason, reason_of
from cloister_sandbox.outputs import BEYOND, CHUNK, LIVE, Missing, OutputStore, Policy, Reader

SMALL = Policy(head=100, tail=200, spool=300)


class Source:
    """Stands for a program that prints while it may."""

    def __init__(self, policy: Policy) -> None:
        self.paused = False
        self.store = OutputStore(policy, self._pause, self._resume)

    def _pause(self) -> None:
        self.paused = True

    def _resume(self) -> None:
        self.paused = False


def pattern(start: int, length: int) -> bytes:
    """Bytes that tell their offset."""
    return bytes((start + each) * 131 % 251 for each in range(length))


async def drain(reader: Reader) -> tuple[bytes, list[Missing]]:
    """Everything that is kept from a reader's place on, and what is missing."""
    data, missing = b"", []
    while (found := await reader.take()) is not None:
        if isinstance(found, Missing):
            missing.append(found)
        else:
            assert found.start == reader.position
            data += bytes(found.data)
        reader.advance(found.end)
    return data, missing


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the event loop go round until something is so."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never was")


async def flushed(store: OutputStore) -> None:
    while store._flushing is not None:
        await store._flushing


async def test_what_is_forgotten_while_it_is_written_is_written_no_more() -> None:
    """The loop that writes what is late must see that there is nothing left to write."""
    source = Source(SMALL)
    for start in range(0, LIVE + BEYOND + CHUNK, CHUNK):
        source.store.add(1, pattern(start, CHUNK))
    flushing = source.store._flushing
    assert flushing is not None
    await asyncio.sleep(0)
    source.store.close()
    await asyncio.wait_for(flushing, 10)


async def test_head_file_and_tail_are_kept_and_the_rest_is_said_to_be_missing() -> None:
    source = Source(SMALL)
    length = LIVE + CHUNK + 5000
    for start in range(0, length, 1000):
        source.store.add(1, pattern(start, min(1000, length - start)))
    source.store.finish()
    await flushed(source.store)
    data, missing = await drain(source.store.reader(0))
    assert missing == [Missing(400, length - 200)]
    assert data == pattern(0, 400) + pattern(length - 200, 200)
    assert source.store.lost_bytes == length - 600
    assert source.store.kept_bytes == 600
    data, missing = await drain(source.store.reader(350))
    assert (len(data), missing[0].start) == (250, 400)
    data, missing = await drain(source.store.reader(1000))
    assert (data, missing) == (pattern(length - 200, 200), [Missing(1000, length - 200)])


async def test_every_byte_comes_back_with_its_stream() -> None:
    source = Source(Policy(head=10, tail=10))
    expected = []
    for number in range(5000):
        source.store.add(1 + number % 2, pattern(number, number % 7 + 1))
        expected += [1 + number % 2] * (number % 7 + 1)
    source.store.finish()
    await flushed(source.store)
    reader = source.store.reader(0)
    streams: list[int] = []
    while (found := await reader.take()) is not None:
        assert not isinstance(found, Missing)
        streams += [found.stream] * len(found.data)
        reader.advance(found.end)
    assert streams == expected


async def test_a_piece_that_was_taken_does_not_grow() -> None:
    source = Source(Policy())
    reader = source.store.reader(0)
    source.store.add(1, b"abc")
    first = await reader.take()
    source.store.add(1, b"def")
    assert first is not None
    reader.advance(first.end)
    assert (await drain(reader))[0] == b"def"


async def test_a_reader_that_stalls_does_not_hold_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outputs, "GRACE_SECONDS", 0.0)
    source = Source(Policy(spool=1))
    stalled = source.store.reader(0)
    while not source.paused:
        source.store.add(1, bytes(CHUNK))
    assert source.store.total <= LIVE + 2 * CHUNK
    await eventually(lambda: not source.paused)
    for _ in range(100):
        source.store.add(1, bytes(CHUNK))
        assert not source.paused
    _, missing = await drain(stalled)
    assert len(missing) == 1
    assert stalled.kept_up


async def test_a_reader_that_keeps_up_loses_nothing() -> None:
    source = Source(Policy(spool=1))
    reader = source.store.reader(0)
    read = 0
    for number in range(200):
        if not source.paused:
            source.store.add(1, bytes([number]) * CHUNK)
        if source.paused or number % 5 == 0:
            data, missing = await drain(reader)
            assert missing == []
            read += len(data)
            assert not source.paused
    assert read + len((await drain(reader))[0]) == source.store.total


async def test_the_end_takes_nothing_from_a_reader_that_kept_up() -> None:
    source = Source(Policy(spool=1))
    reader = source.store.reader(0)
    source.store.add(1, bytes(LIVE - 1))
    source.store.finish()
    data, missing = await drain(reader)
    assert (len(data), missing) == (LIVE - 1, [])
    assert source.store.kept_bytes == 32 * 1024 + 1 + 64 * 1024


async def test_a_program_can_be_made_to_wait_for_its_slowest_reader() -> None:
    source = Source(Policy(spool=1, block_when_full=True))
    quick, slow = source.store.reader(0), source.store.reader(0)
    while not source.paused:
        source.store.add(1, bytes(CHUNK))
    await drain(quick)
    assert source.paused
    source.store.leave(quick)
    assert source.paused, "the slow one still waits"
    _, missing = await drain(slow)
    assert missing == []
    assert not source.paused
    source.store.leave(slow)
    while not source.paused:
        source.store.add(1, bytes(CHUNK))
    assert (await drain(source.store.reader(slow.position)))[1] == []


@pytest.mark.parametrize("lacking", [OSError, MemoryError])
async def test_a_disk_that_fails_costs_output_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, lacking: type[Exception]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise lacking

    monkeypatch.setattr(os, "pwrite", fail)
    source = Source(SMALL)
    before = spool.Spool.occupied
    source.store.add(1, pattern(0, 100))
    for _ in range(20):
        source.store.add(1, bytes(CHUNK))
        await asyncio.sleep(0)
    source.store.finish()
    await flushed(source.store)
    _, missing = await drain(source.store.reader(0))
    assert missing == [Missing(100, source.store.total - 200)]
    assert spool.Spool.occupied == before
    source.store.close()
    assert spool.Spool.occupied == before


async def test_files_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "TOTAL", spool.Spool.occupied + 150)
    before = spool.Spool.occupied
    stores = [Source(SMALL).store for _ in range(2)]
    for store in stores:
        store.add(1, bytes(LIVE + 3 * CHUNK))
        store.finish()
        await flushed(store)
    assert spool.Spool.occupied == before + 150
    for store in stores:
        store.close()
    assert spool.Spool.occupied == before


def job(name: str, policy: Policy | None = None) -> Job:
    return Job(name, b"", ("x",), policy or Policy())


def ended() -> Ending:
    return Ending(0, Reason.EXITED, 0.0)


async def test_jobs_that_ended_are_forgotten_when_they_are_too_many_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "KEEP_BYTES", 250)
    jobs = Jobs()
    for number in range(3):
        each = job(str(number))
        jobs.put(each)
        each.store.add(1, bytes(100))
        each.end(ended())
        await asyncio.sleep(0)
    assert [each.id for each in jobs.all()] == ["1", "2"]


async def test_jobs_are_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_SECONDS", 0.0)
    jobs = Jobs()
    each = job("short")
    jobs.put(each)
    each.end(ended())
    await eventually(lambda: not jobs.has("short"))
    with pytest.raises(NotFound):
        jobs.get("short")


async def test_memory_is_reserved() -> None:
    jobs = Jobs()
    large = Policy(head=1024 * 1024, tail=16 * 1024 * 1024)
    for number in range(MEMORY // (large.head + large.tail)):
        jobs.require_room(large)
        jobs.put(job(str(number), large))
    with pytest.raises(Busy):
        jobs.require_room(large)
    jobs.get("3").end(ended())
    await asyncio.sleep(0)
    jobs.require_room(large)
    assert not jobs.has("3")


@pytest.mark.parametrize(
    ("code", "kills", "sent", "stopping", "reason"),
    [
        (-9, 1, set(), None, Reason.OOM_KILLED),
        (-9, 0, set(), None, Reason.EXITED),
        (-9, 1, {9}, None, Reason.SIGNALLED),
        (-9, 1, set(), Reason.TIMED_OUT, Reason.TIMED_OUT),
        (-11, 1, set(), None, Reason.EXITED),
        (1, 1, {15}, None, Reason.EXITED),
        (-15, 0, {15}, None, Reason.SIGNALLED),
    ],
)
async def test_why_a_job_ended(
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kills: int,
    sent: set[int],
    stopping: Reason | None,
    reason: Reason,
) -> None:
    monkeypatch.setattr(module, "oom_kills", lambda: kills)
    each = job("x")
    each.sent, each.stopping = sent, stopping
    assert reason_of(each, code, oom_before=0) is reason


async def test_who_comes_late_to_a_program_that_waited_misses_nothing() -> None:
    policy = Policy(head=1, tail=1, spool=1, block_when_full=True)
    store = OutputStore(policy, lambda: None, lambda: None)
    printed = bytes(range(256)) * (LIVE // 256 + 512)
    for start in range(0, len(printed), CHUNK):
        store.add(1, printed[start : start + CHUNK])
    reader = store.reader(0)
    store.finish()
    came = b""
    while isinstance(piece := await reader.take(), outputs.Piece):
        came += bytes(piece.data)
        reader.advance(piece.end)
    assert came == printed
