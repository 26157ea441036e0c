"""Who has a place, who waits for one, and what is known of pods that no answer told of."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.api.pod import PodView, view
from cloister_operator.api.session import SessionObject
from cloister_operator.cache import Key, Store
from cloister_operator.controller import witness
from cloister_operator.controller.flights import EXPIRES_AFTER, Flights
from cloister_operator.controller.places import Places, of_environment, of_namespace
from cloister_operator.controller.witness import Witness
from cloister_operator.errors import TransientError
from support.operator_objects import JSON, NAMESPACE, NOW, session_body

KEY = (NAMESPACE, "py")


def pods_of(pod: PodView) -> list[tuple[str, ...]]:
    return [("session", pod.namespace, pod.session_uid)] if pod.session_uid else []


class Mirrors:
    """The mirrors, and changes as a watch tells them."""

    def __init__(self, whose: Callable[[str, str], Key] = of_environment) -> None:
        self.pods = Store(view, pods_of)
        self.sessions = Store(SessionObject.parse, lambda _: ())
        self.places = Places(self.pods, self.sessions, whose)
        self.left: list[tuple[str, str]] = []
        self.places.listen(self.left.append)
        self._version = 1

    def session(self, name: str, second: int = 0, phase: str = "Pending", **spec: Any) -> None:
        self._version += 1
        body = session_body(name, **spec)
        body["metadata"] |= {
            "uid": f"uid-of-{name}",
            "resourceVersion": str(self._version),
            "creationTimestamp": f"2026-05-01T12:00:{second:02}Z",
        }
        body["status"] = {"phase": phase}
        self.sessions.put(body)

    def pod(self, name: str, session: str, **metadata: str) -> JSON:
        self._version += 1
        body: JSON = {
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": f"uid-of-{name}",
                "resourceVersion": str(self._version),
                "creationTimestamp": "2026-05-01T12:00:00Z",
                "labels": {
                    names.ENVIRONMENT_LABEL: "py",
                    names.STATE_LABEL: names.STATE_CLAIMED,
                    names.SESSION_LABEL: f"uid-of-{session}",
                },
                **metadata,
            },
            "spec": {},
        }
        self.pods.put(body)
        return body

    def before(self, name: str) -> int:
        found = self.sessions.get(NAMESPACE, name)
        assert found is not None
        return self.places.before(found)

    def ahead(self, name: str) -> int:
        found = self.sessions.get(NAMESPACE, name)
        assert found is not None
        return self.places.ahead(found)


@pytest.fixture
def mirrors() -> Mirrors:
    return Mirrors()


def test_the_oldest_goes_first_and_each_counts_once(mirrors: Mirrors) -> None:
    for second, name in enumerate("abc"):
        mirrors.session(name, second)
    assert [mirrors.before(each) for each in "abc"] == [0, 1, 2]
    mirrors.pod("p", "b")
    assert mirrors.places.taken(KEY) == 1
    assert [mirrors.before(each) for each in "abc"] == [1, 0, 2]
    assert mirrors.places.front(KEY, 2)[:1] == ["a"]
    assert [mirrors.ahead(each) for each in "abc"] == [0, 0, 1]


def test_the_environments_of_a_namespace_share_its_places() -> None:
    mirrors = Mirrors(of_namespace)
    for second, (name, environment) in enumerate([("a", "py"), ("b", "go"), ("c", "py")]):
        mirrors.session(name, second, environment=environment)
    mirrors.pod("p", "b")
    key = of_namespace(*KEY)
    assert mirrors.places.taken(key) == 1
    assert [mirrors.before(each) for each in "abc"] == [1, 0, 2]
    assert mirrors.places.front(key, 2)[:1] == ["a"]
    mirrors.session("b", 1, phase="Failed", environment="go")
    assert mirrors.left[-1] == key


@pytest.mark.parametrize("phase", ["Terminated", "Failed", "Suspended"])
def test_a_place_is_left_with_the_session_and_not_with_its_pod(
    mirrors: Mirrors, phase: str
) -> None:
    mirrors.session("a", phase="Running")
    pod = mirrors.pod("p", "a")
    mirrors.left.clear()
    mirrors.pods.remove(pod)
    assert mirrors.places.taken(KEY) == 1, "its pod is gone, and its status does not say so yet"
    mirrors.session("a", phase=phase)
    assert mirrors.places.taken(KEY) == 0
    assert mirrors.left == [KEY]


def test_a_pod_whose_session_is_not_known_yet_has_a_place(mirrors: Mirrors) -> None:
    mirrors.pod("p", "a")
    assert mirrors.places.taken(KEY) == 1
    mirrors.session("a")
    assert mirrors.places.taken(KEY) == 1
    mirrors.pod("p", "a", deletionTimestamp="2026-05-01T12:01:00Z")
    mirrors.sessions.remove({"metadata": {"namespace": NAMESPACE, "name": "a", "uid": "uid-of-a"}})
    assert mirrors.places.taken(KEY) == 0


def test_a_session_that_another_operator_resumed_has_a_place(mirrors: Mirrors) -> None:
    mirrors.session("a", phase="Suspended")
    assert mirrors.places.taken(KEY) == 0
    mirrors.pod("next", "a")
    assert mirrors.places.taken(KEY) == 1


def test_who_is_admitted_keeps_its_place_whoever_comes(mirrors: Mirrors) -> None:
    mirrors.session("b", 1)
    found = mirrors.sessions.get(NAMESPACE, "b")
    assert found is not None
    with mirrors.places.admitting(found):
        mirrors.session("a", 0)
        assert mirrors.before("a") == 1
        mirrors.pod("p", "b")
        assert mirrors.before("a") == 1
    assert mirrors.before("a") == 1


def test_who_does_not_want_to_run_is_in_no_line(mirrors: Mirrors) -> None:
    mirrors.session("a", 0, state="Suspended")
    mirrors.session("b", 1)
    assert mirrors.before("b") == 0


# --- what the watch has told -----------------------------------------------------------------


async def test_everything_before_a_version_is_known_once_the_watch_is_there() -> None:
    mirrors = Mirrors()
    told = Witness(mirrors.pods)
    body = mirrors.pod("p", "a")
    version = int(body["metadata"]["resourceVersion"])
    waiting = asyncio.create_task(told.reached(NAMESPACE, version))
    await asyncio.sleep(0)
    told.replace([], version - 1, NAMESPACE)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    told.put(body)
    await waiting
    await told.reached(NAMESPACE, version)


async def test_a_silent_watch_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "PATIENCE", 0.01)
    with pytest.raises(TransientError, match="watch"):
        await Witness(Mirrors().pods).reached(NAMESPACE, 7)


# --- pods that no answer told of -------------------------------------------------------------


def test_a_lost_name_is_used_again_once_and_not_for_ever() -> None:
    flights = Flights()
    flights.lost("pool", "p1", NOW)
    assert flights.count("pool", NOW) == 1
    assert flights.count("other", NOW) == 0
    assert flights.take("pool", NOW) == "p1"
    assert flights.take("pool", NOW) is None
    flights.lost("pool", "p2", NOW)
    assert flights.count("pool", NOW + EXPIRES_AFTER - timedelta(seconds=1)) == 1
    assert flights.take("pool", NOW + EXPIRES_AFTER) is None
