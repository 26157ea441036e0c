"""The queue: deduplicated, one at a time per key, repeated with backoff."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from cloister_operator import workqueue
from cloister_operator.errors import (
    ConflictError,
    NotFoundError,
    OperatorError,
    PermanentError,
    TransientError,
)
from cloister_operator.workqueue import WorkQueue
from support.eventually import until

Handler = Callable[[str], Awaitable[float | None]]
Make = Callable[..., WorkQueue[str]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Queues that run until the test ends."""
    tasks = []

    def start(handler: Handler, at_once: int = 64) -> WorkQueue[str]:
        queue = WorkQueue(handler, at_once)
        tasks.append(asyncio.create_task(queue.run()))
        return queue

    yield start
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Gate:
    """A handler that lets through what the test releases, and knows what happens at once."""

    def __init__(self) -> None:
        self.open = asyncio.Semaphore(0)
        self.started: list[str] = []
        self.inside: Counter[str] = Counter()
        self.most_per_key = 0
        self.most_at_once = 0
        self.changed = asyncio.Event()

    async def __call__(self, key: str) -> float | None:
        self.started.append(key)
        self.inside[key] += 1
        self.most_per_key = max(self.most_per_key, self.inside[key])
        self.most_at_once = max(self.most_at_once, self.inside.total())
        self.changed.set()
        await self.open.acquire()
        self.inside[key] -= 1
        return None

    async def until_started(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.started) < count:
                self.changed.clear()
                await self.changed.wait()


async def test_a_key_added_often_is_handled_once() -> None:
    gate = Gate()
    queue = WorkQueue(gate)
    for _ in range(5):
        queue.add("a")
    assert len(queue) == 1
    task = asyncio.create_task(queue.run())
    gate.open.release()
    await until(lambda: queue.progress == 1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert gate.started == ["a"]


async def test_a_key_added_while_it_is_handled_is_handled_again_afterwards(make: Make) -> None:
    gate = Gate()
    queue = make(gate)
    queue.add("a")
    await gate.until_started(1)
    for _ in range(5):
        queue.add("a")
    queue.add("b")
    await gate.until_started(2)
    assert gate.started == ["a", "b"]
    for _ in range(3):
        gate.open.release()
    await until(lambda: queue.progress == 3)
    assert sorted(gate.started) == ["a", "a", "b"]
    assert gate.most_per_key == 1


async def test_no_more_are_handled_at_once_than_allowed(make: Make) -> None:
    gate = Gate()
    queue = make(gate, 2)
    for key in "abcde":
        queue.add(key)
    await gate.until_started(2)
    for _ in "abcde":
        gate.open.release()
    await until(lambda: queue.progress == 5)
    assert gate.most_at_once == 2
    assert gate.started == list("abcde")


async def test_the_answer_is_the_delay_until_the_next_time(make: Make) -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    async def handler(key: str) -> float | None:
        times.append(loop.time())
        return 0.05 if len(times) == 1 else None

    queue = make(handler)
    queue.add("a")
    await until(lambda: queue.progress == 2)
    assert times[1] - times[0] >= 0.05


async def test_of_several_times_the_earliest_counts_and_once(make: Make) -> None:
    handled: list[str] = []

    async def handler(key: str) -> float | None:
        handled.append(key)
        return None

    queue = make(handler)
    queue.add_after("a", 3600)
    queue.add_after("a", 0.02)
    queue.add_after("a", 3600)
    queue.add_after("b", 0.06)
    await until(lambda: "b" in handled)
    assert handled == ["a", "b"]


async def test_adding_now_takes_the_place_of_adding_later(make: Make) -> None:
    handled: list[str] = []

    async def handler(key: str) -> float | None:
        handled.append(key)
        return None

    queue = make(handler)
    queue.add_after("a", 0.03)
    queue.add("a")
    queue.add_after("b", 0.08)
    await until(lambda: "b" in handled)
    assert handled == ["a", "b"]


class Delays(WorkQueue[str]):
    """A queue that notes its delays instead of waiting."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(handler)
        self.delays: list[float] = []

    def add_after(self, key: str, seconds: float) -> None:
        self.delays.append(seconds)
        self.add(key)


async def delays_of(errors: list[BaseException | None]) -> list[float]:
    """The delays after each of these outcomes of one key."""
    outcomes = iter(errors)
    done = asyncio.Event()

    async def handler(key: str) -> float | None:
        try:
            outcome = next(outcomes)
        except StopIteration:
            done.set()
            return None
        if outcome:
            raise outcome
        return 0.0

    queue = Delays(handler)
    queue.add("a")
    task = asyncio.create_task(queue.run())
    async with asyncio.timeout(30):
        await done.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return queue.delays


async def test_backoff_doubles_up_to_a_bound_and_starts_anew_after_a_success() -> None:
    error = TransientError("not now")
    delays = await delays_of([*[error] * 14, None, error])
    bounds = [min(workqueue.LONGEST_BACKOFF, workqueue.FIRST_BACKOFF * 2**n) for n in range(14)]
    for delay, bound in zip(delays, bounds, strict=False):
        assert bound / 2 <= delay <= bound
    assert bounds[-1] == workqueue.LONGEST_BACKOFF
    assert delays[14] == 0.0
    assert delays[15] <= workqueue.FIRST_BACKOFF


async def test_a_key_that_fails_for_a_day_is_tried_on() -> None:
    """A quota that is used up lasts that long; powers of two soon are no floats any more."""
    delays = await delays_of([TransientError("not now")] * 4000)
    assert len(delays) == 4000
    assert max(delays) <= workqueue.LONGEST_BACKOFF


async def test_the_time_that_the_other_side_asks_for_is_kept() -> None:
    assert await delays_of([TransientError("busy", retry_after=0.01)]) == [0.01]


async def test_nothing_that_happens_shortens_the_time_that_the_other_side_asks_for(
    make: Make,
) -> None:
    loop, began, handled = asyncio.get_running_loop(), list[float](), list[str]()

    async def handler(key: str) -> float | None:
        if key == "other":
            handled.append(key)
            return None
        began.append(loop.time())
        if len(began) == 1:
            # Its own writes come back while it is handled.
            queue.add(key)
            raise TransientError("too many requests", retry_after=0.2)
        return None

    queue = make(handler)
    queue.add("a")
    await until(lambda: began)
    while len(began) == 1:
        queue.add("a")
        queue.add("other")
        await asyncio.sleep(0.01)
    assert began[1] - began[0] >= 0.2
    assert len(handled) > 1, "others wait as well"
    # Afterwards it is as ever.
    queue.add("a")
    await until(lambda: len(began) == 3)
    assert not queue._not_before
    assert not queue._due


async def test_no_time_that_is_asked_for_is_too_long(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(workqueue, "LONGEST_BACKOFF", 0.05)
    tries = 0

    async def handler(_key: str) -> float | None:
        nonlocal tries
        tries += 1
        raise TransientError("come back tomorrow", retry_after=86_400)

    queue = make(handler)
    queue.add("a")
    await until(lambda: tries == 2)


@pytest.mark.parametrize(
    "error",
    [
        ConflictError("changed"),
        NotFoundError("gone"),
        PermanentError("Rejected", "wrong"),
        OperatorError("else"),
        KeyError("a defect"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_every_error_is_repeated(error: Exception) -> None:
    (delay,) = await delays_of([error])
    assert 0 < delay <= workqueue.FIRST_BACKOFF


async def test_one_key_that_fails_holds_up_no_other(make: Make) -> None:
    handled: Counter[str] = Counter()

    async def handler(key: str) -> float | None:
        handled[key] += 1
        if key == "bad":
            raise TransientError("not now")
        return None

    queue = make(handler)
    for n in range(100):
        queue.add("bad")
        queue.add(f"good-{n}")
    await until(lambda: all(handled[f"good-{n}"] == 1 for n in range(100)))


async def test_cancelling_cancels_what_is_being_handled() -> None:
    cancelled = asyncio.Event()
    started = asyncio.Event()

    async def handler(key: str) -> float | None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return None

    queue = WorkQueue(handler)
    queue.add("a")
    task = asyncio.create_task(queue.run())
    async with asyncio.timeout(30):
        await started.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert cancelled.is_set()


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancellation_that_comes_together_with_work_ends_the_queue(steps: int) -> None:
    async def handler(key: str) -> float | None:
        return None

    queue = WorkQueue(handler)
    queue.add_after("later", 3600)
    task = asyncio.create_task(queue.run())
    for _ in range(5):
        await asyncio.sleep(0)
    queue.add("a")
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=10)
    assert done, "the queue goes on"
    assert task.cancelled()


async def test_times_that_are_over_do_not_gather(make: Make) -> None:
    """A key that is due in months and is handled each minute leaves one entry, not one a minute."""

    async def handler(key: str) -> float | None:
        return None

    queue = WorkQueue(handler)
    for _ in range(10_000):
        queue.add_after("a", 1e7)
        queue.add("a")
    queue.add_after("b", 1e7)
    assert len(queue._later) < 2_000
    assert queue._due.keys() == {"b"}
    assert [each[2] for each in queue._later].count("b") == 1
