"""The mirror of a kind: listed, watched, and listed again when the watch is too old or breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pytest

from cloister_operator.cluster import api
from cloister_operator.cluster import reflector as reflectors
from cloister_operator.cluster.reflector import Reflector
from cloister_operator.cluster.resources import CONFIG_MAPS, Resource
from cloister_operator.errors import TransientError
from support.eventually import until
from support.fake_api import Connection, FakeCluster

JSON = dict[str, Any]


class Mirror:
    """A sink that notes names, and how often it was listed."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.lists = 0

    def replace(self, objects: Iterable[JSON], version: int, namespace: str = "") -> None:
        self.lists += 1
        self.names = {each["metadata"]["name"] for each in objects}

    def put(self, obj: JSON) -> None:
        self.names.add(obj["metadata"]["name"])

    def remove(self, obj: JSON) -> None:
        self.names.discard(obj["metadata"]["name"])


class Breaking(Connection):
    """A connection whose lists and watches break when the test says so."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__(cluster)
        self.broken = asyncio.Event()
        self.ended = asyncio.Event()
        self.refused_lists = 0

    async def list(
        self, resource: Resource, namespace: str = "", selector: str = "", fields: str = ""
    ) -> tuple[Sequence[JSON], str]:
        if self.refused_lists:
            self.refused_lists -= 1
            raise TransientError("the API server answered 503")
        return await super().list(resource, namespace, selector, fields)

    async def watch(
        self, resource: Resource, namespace: str, selector: str, resource_version: str
    ) -> AsyncIterator[tuple[str, JSON]]:
        stream = aiter(super().watch(resource, namespace, selector, resource_version))
        while True:
            waits = [
                asyncio.ensure_future(each)
                for each in (anext(stream), self.broken.wait(), self.ended.wait())
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finished = waits[0].done()
            for each in waits:
                if not each.done():
                    each.cancel()
                    with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                        await each
            if self.broken.is_set():
                self.broken.clear()
                raise TransientError("the watch broke")
            if self.ended.is_set():
                self.ended.clear()
                return
            if finished:
                event: Any = waits[0].result()
                yield event


class Setup:
    """A cluster with one namespace, a connection and a running reflector."""

    def __init__(self, history: int = 1000) -> None:
        self.cluster = FakeCluster(namespaces={"ns": {}, "other": {}}, history=history)
        self.api = Breaking(self.cluster)
        self.mirror = Mirror()
        self.reflector = Reflector(self.api, CONFIG_MAPS, "ns", "a=b", self.mirror)
        self.task: asyncio.Task[None] | None = None

    def make(self, name: str, namespace: str = "ns", label: str = "b") -> None:
        body = {"metadata": {"name": name, "labels": {"a": label}}}
        self.cluster.create(CONFIG_MAPS, namespace, body)

    async def start(self) -> None:
        self.task = asyncio.create_task(self.reflector.run())
        async with asyncio.timeout(30):
            await self.reflector.synced.wait()

    async def shows(self, *names: str) -> None:
        await until(lambda: self.mirror.names == set(names), pause=0.001)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    async def backoff(attempt: int) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(reflectors, "backoff", backoff)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    yield made
    if made.task:
        made.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await made.task


async def test_what_is_there_and_what_comes_and_goes(setup: Setup) -> None:
    setup.make("first")
    setup.make("elsewhere", namespace="other")
    setup.make("unlabelled", label="c")
    await setup.start()
    await setup.shows("first")
    setup.make("second")
    await setup.shows("first", "second")
    setup.cluster.delete(CONFIG_MAPS, "ns", "first")
    await setup.shows("second")
    assert setup.mirror.lists == 1


async def test_a_watch_that_ends_is_taken_up_without_a_list(setup: Setup) -> None:
    await setup.start()
    setup.make("a")
    await setup.shows("a")
    setup.api.ended.set()
    await until(lambda: not setup.api.ended.is_set(), pause=0.001)
    setup.make("b")
    await setup.shows("a", "b")
    assert setup.mirror.lists == 1


async def test_a_watch_that_breaks_is_followed_by_a_list(setup: Setup) -> None:
    await setup.start()
    setup.make("a")
    await setup.shows("a")
    setup.api.refused_lists = 3
    setup.api.broken.set()
    setup.cluster.delete(CONFIG_MAPS, "ns", "a")
    setup.make("b")
    await setup.shows("b")
    await until(lambda: setup.mirror.lists == 2, pause=0.001)


async def test_a_server_that_is_not_there_yet_is_waited_for(setup: Setup) -> None:
    setup.api.refused_lists = 5
    setup.make("a")
    await setup.start()
    await setup.shows("a")


async def test_a_watch_that_is_too_old_is_followed_by_a_list() -> None:
    setup = Setup(history=5)
    await setup.start()
    setup.make("a")
    await setup.shows("a")
    # More than the server keeps, before the watch has a chance to read any of it.
    for n in range(20):
        setup.make(f"n{n}")
        setup.cluster.delete(CONFIG_MAPS, "ns", f"n{n}")
    setup.make("b")
    await setup.shows("a", "b")
    assert setup.mirror.lists == 2
    assert setup.task is not None
    setup.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await setup.task


async def test_watches_that_end_at_once_are_asked_for_ever_more_seldom(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands before an API server may end them in order, as often as it is asked."""
    pauses: list[int] = []

    async def backoff(attempt: int) -> None:
        pauses.append(attempt)
        await asyncio.sleep(0)

    monkeypatch.setattr(reflectors, "backoff", backoff)
    await setup.start()
    async with asyncio.timeout(30):
        while len(pauses) < 3:
            setup.api.ended.set()
            await asyncio.sleep(0)
    assert pauses[:3] == [1, 2, 3]
    assert setup.mirror.lists == 1


async def test_an_api_server_that_is_away_for_a_day_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Powers of two soon are no floats any more."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)
    for attempt in (0, 1, 5, 6, 1100, 20_000):
        await api.backoff(attempt)
    assert slept == [0.1, 0.2, 3.2, 5.0, 5.0, 5.0]
