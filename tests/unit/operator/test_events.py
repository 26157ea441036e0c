"""Events: one for each thing, added to when it happens again, and never too many."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import metrics, names
from cloister_operator.api.common import ObjectMeta
from cloister_operator.cluster.resources import EVENTS
from cloister_operator.controller import events
from cloister_operator.controller.events import Recorder, Type
from cloister_operator.errors import RefusedError
from support.eventually import until
from support.fake_api import Connection, FakeCluster
from support.fake_operator import OPEN_NAMESPACE, Clock
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]


class Scene:
    """A recorder on a cluster; every Event write is counted."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.cluster = FakeCluster(self.clock, namespaces={NAMESPACE: OPEN_NAMESPACE})
        self.changes: list[JSON] = []
        self.cluster.listeners.append(
            lambda change: (
                self.changes.append(change.after or {}) if change.resource == EVENTS else None
            )
        )
        self.connection = Connection(self.cluster)
        self.recorder = Recorder(self.connection, "operator-0", self.clock)
        self.task = asyncio.create_task(self.recorder.run())

    def record(
        self,
        name: str = "s1",
        reason: str = "NodeLost",
        text: str = "m",
        kind: Type = "Warning",
        namespace: str = NAMESPACE,
    ) -> None:
        subject = ObjectMeta(name=name, namespace=namespace, uid=f"uid-of-{name}")
        self.recorder.record(names.SESSION_KIND, subject, reason, text, kind)

    def events(self) -> list[JSON]:
        return self.cluster.all(EVENTS, NAMESPACE)

    async def posted(self, writes: int) -> None:
        await until(lambda: len(self.changes) >= writes)

    def end(self) -> None:
        self.task.cancel()


def counted(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("cloister_events_total", {"outcome": outcome}) or 0.0


async def test_an_event_says_what_happened_to_what() -> None:
    scene = Scene()
    scene.record(text="its node is gone")
    await scene.posted(1)
    (event,) = scene.events()
    assert (event["reason"], event["type"], event["count"]) == ("NodeLost", "Warning", 1)
    assert event["involvedObject"]["uid"] == "uid-of-s1"
    assert event["message"] == "its node is gone"
    scene.end()


async def test_a_thing_that_flaps_makes_one_event_and_few_writes() -> None:
    scene = Scene()
    for index in range(500):
        scene.record(text=f"for the {index}th time")
        await asyncio.sleep(0)
    await scene.posted(1)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(scene.changes) == 1
    scene.end()


async def test_what_happens_again_is_added() -> None:
    scene = Scene()
    scene.record(text="first")
    await scene.posted(1)
    scene.clock.now += timedelta(seconds=30)
    note = next(iter(scene.recorder._notes.values()))
    note.not_before, note.pause = 0.0, 0.0
    scene.record(text="second")
    await scene.posted(2)
    (event,) = scene.events()
    assert (event["count"], event["message"]) == (2, "second")
    assert event["firstTimestamp"] < event["lastTimestamp"]
    scene.end()


async def test_pauses_between_writes_grow_to_their_bound() -> None:
    scene = Scene()
    scene.record()
    await scene.posted(1)
    note = next(iter(scene.recorder._notes.values()))
    loop = asyncio.get_running_loop()
    await until(lambda: note.not_before > loop.time() + events.FIRST_PAUSE / 2)
    assert note.pause == 2 * events.FIRST_PAUSE
    scene.end()


async def test_the_next_operator_goes_on_with_the_event() -> None:
    scene = Scene()
    scene.record(text="by the first")
    await scene.posted(1)
    scene.end()
    scene.recorder = Recorder(Connection(scene.cluster), "operator-1", scene.clock)
    scene.task = asyncio.create_task(scene.recorder.run())
    scene.record(text="by the second")
    await scene.posted(2)
    (event,) = scene.events()
    assert (event["count"], event["message"]) == (2, "by the second")
    assert event["reportingInstance"] == "operator-1"
    scene.end()


async def test_an_event_that_the_server_forgot_is_made_again() -> None:
    scene = Scene()
    scene.record()
    await scene.posted(1)
    scene.cluster.delete(EVENTS, NAMESPACE, scene.events()[0]["metadata"]["name"])
    note = next(iter(scene.recorder._notes.values()))
    await until(lambda: note.not_before > 0)
    note.not_before = 0.0
    scene.record()
    await until(scene.events)
    assert scene.events()[0]["count"] == 2
    scene.end()


async def test_what_went_well_is_shed_and_warnings_are_not() -> None:
    scene = Scene()
    dropped = counted("dropped")
    for index in range(300):
        scene.record(f"s{index}", "Claimed", kind="Normal")
        scene.record(f"s{index}", "NodeLost")
    burst = int(events.RATES["Normal"].burst)
    await scene.posted(300 + burst)
    # More of the others are let through as time goes by.
    await until(lambda: [each["type"] for each in scene.changes].count("Warning") >= 300)
    kinds = [each["type"] for each in scene.events()]
    assert kinds.count("Warning") == 300
    assert burst <= kinds.count("Normal") <= 200
    assert counted("dropped") > dropped
    scene.end()


async def test_one_namespaces_flood_takes_nothing_from_what_others_are_told() -> None:
    scene = Scene()
    scene.task.cancel()
    dropped = counted("dropped")
    for index in range(3000):
        scene.record(f"s{index}", kind="Normal", namespace="flood")
        scene.record(f"s{index}", kind="Warning", namespace="flood")
    scene.record("mine", kind="Normal", namespace="calm")
    scene.record("mine", kind="Warning", namespace="calm")
    notes = list(scene.recorder._notes.values())
    of_flood = [each.type for each in notes if each.subject.namespace == "flood"]
    assert 100 <= of_flood.count("Normal") <= 200
    assert 500 <= of_flood.count("Warning") <= 700
    assert [each.type for each in notes if each.subject.namespace == "calm"] == [
        "Normal",
        "Warning",
    ]
    assert counted("dropped") >= dropped + 4000
    for index in range(2 * events.NAMESPACES):
        scene.record(f"other-{index}", namespace=f"n{index}")
    assert len(scene.recorder._buckets) == events.NAMESPACES


async def test_what_is_remembered_is_bounded() -> None:
    scene = Scene()
    scene.task.cancel()
    for index in range(3 * events.REMEMBERED):
        scene.record(f"s{index}", namespace=f"n{index}")
    assert len(scene.recorder._notes) <= events.REMEMBERED
    assert len(scene.recorder._due) <= events.REMEMBERED


async def test_a_refused_event_is_dropped_and_the_next_is_posted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    create = scene.connection.create

    async def refused(*_: Any) -> JSON:
        monkeypatch.setattr(scene.connection, "create", create)
        raise RefusedError("no")

    monkeypatch.setattr(scene.connection, "create", refused)
    dropped = counted("dropped")
    scene.record("s1")
    scene.record("s2")
    await scene.posted(1)
    assert [each["involvedObject"]["name"] for each in scene.events()] == ["s2"]
    assert counted("dropped") == dropped + 1
    scene.end()
