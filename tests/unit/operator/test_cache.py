"""The mirror: what is newer wins, what is gone stays gone, and listeners hear of each change."""

import logging
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.cache import Store

JSON = dict[str, Any]
Change = tuple[str | None, str | None]


def obj(name: str, version: int, uid: str = "", value: str = "", namespace: str = "ns") -> JSON:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-of-{name}",
            "resourceVersion": str(version),
        },
        "value": value or f"{name}@{version}",
    }


def parse(raw: JSON) -> str:
    if raw["value"] == "unreadable":
        raise ValueError("cannot be read")
    return str(raw["value"])


def groups(value: str) -> Iterable[str]:
    """Values belong to the group of their first letter."""
    return [value[0]]


class Spy:
    """A store and what its listener heard."""

    def __init__(self) -> None:
        self.store: Store[str] = Store(parse, groups)
        self.heard: list[Change] = []
        self.store.listen(lambda before, after: self.heard.append((before, after)))


@pytest.fixture
def spy() -> Spy:
    return Spy()


def test_changes_are_kept_indexed_and_told(spy: Spy) -> None:
    spy.store.put(obj("a", 1))
    spy.store.put(obj("b", 2))
    spy.store.put(obj("a", 3))
    assert spy.store.get("ns", "a") == "a@3"
    assert spy.store.group("a") == ["a@3"]
    assert sorted(spy.store.all()) == ["a@3", "b@2"]
    assert sorted(spy.store) == [("ns", "a"), ("ns", "b")]
    spy.store.remove(obj("a", 4))
    assert spy.store.get("ns", "a") is None
    assert spy.store.group("a") == []
    assert spy.heard == [(None, "a@1"), (None, "b@2"), ("a@1", "a@3"), ("a@3", None)]


def test_a_value_that_changes_its_group_leaves_the_old_one(spy: Spy) -> None:
    spy.store.put(obj("a", 1, value="x"))
    spy.store.put(obj("a", 2, value="y"))
    assert (spy.store.group("x"), spy.store.group("y")) == ([], ["y"])


def test_what_is_older_or_the_same_is_ignored(spy: Spy) -> None:
    spy.store.put(obj("a", 5))
    spy.store.put(obj("a", 4))
    spy.store.put(obj("a", 5, value="again"))
    assert spy.store.get("ns", "a") == "a@5"
    assert len(spy.heard) == 1


def test_versions_are_numbers(spy: Spy) -> None:
    spy.store.put(obj("a", 9))
    spy.store.put(obj("a", 10))
    assert spy.store.get("ns", "a") == "a@10"


def test_a_deleted_object_does_not_come_back(spy: Spy) -> None:
    spy.store.put(obj("a", 1))
    spy.store.remove(obj("a", 2))
    spy.store.put(obj("a", 3))
    assert spy.store.get("ns", "a") is None
    spy.store.put(obj("a", 4, uid="another"))
    assert spy.store.get("ns", "a") == "a@4"


def test_a_deletion_that_comes_before_the_object_counts(spy: Spy) -> None:
    spy.store.remove(obj("a", 2))
    spy.store.put(obj("a", 1))
    assert spy.store.get("ns", "a") is None
    assert spy.heard == []


def test_a_late_event_of_an_object_that_was_replaced_changes_nothing(spy: Spy) -> None:
    spy.store.put(obj("a", 1, uid="first"))
    spy.store.put(obj("a", 5, uid="second"))
    for version in (3, 7):
        spy.store.put(obj("a", version, uid="first"))
    spy.store.remove(obj("a", 4, uid="first"))
    assert spy.store.get("ns", "a") == "a@5"
    assert spy.heard == [(None, "a@1"), ("a@1", "a@5")]


def test_a_late_event_of_an_object_that_was_never_seen_changes_nothing(spy: Spy) -> None:
    spy.store.put(obj("a", 5, uid="second"))
    spy.store.put(obj("a", 3, uid="first"))
    assert spy.store.get("ns", "a") == "a@5"


def test_a_list_replaces_what_it_is_newer_than(spy: Spy) -> None:
    spy.store.put(obj("old", 1))
    spy.store.put(obj("new", 9))
    spy.store.put(obj("other", 1, namespace="elsewhere"))
    spy.store.replace([obj("listed", 3)], 5, "ns")
    assert sorted(spy.store) == [("elsewhere", "other"), ("ns", "listed"), ("ns", "new")]
    spy.store.replace([], 20)
    assert list(spy.store) == []


def test_an_answer_on_its_way_does_not_bring_back_what_a_list_did_not_have(spy: Spy) -> None:
    """Made and deleted between two lists: no watch ever tells of it, only the answer of who made
    it, which came later than the second list.
    """
    spy.store.replace([obj("a", 3)], version=3, namespace="ns")
    spy.store.replace([obj("a", 3)], version=9, namespace="ns")
    spy.store.put(obj("b", 5))
    spy.store.put(obj("a", 6, uid="another"))
    assert spy.store.get("ns", "b") is None
    assert spy.store.get("ns", "a") == "a@3"


def test_a_list_says_nothing_of_what_is_newer_or_elsewhere(spy: Spy) -> None:
    spy.store.replace([], version=9, namespace="ns")
    spy.store.put(obj("a", 10))
    spy.store.put(obj("b", 5, namespace="other"))
    assert set(spy.store) == {("ns", "a"), ("other", "b")}
    spy.store.replace([obj("a", 10)], version=12)
    spy.store.put(obj("c", 11, namespace="third"))
    assert set(spy.store) == {("ns", "a")}


def test_an_unreadable_object_hides_no_other(spy: Spy, caplog: pytest.LogCaptureFixture) -> None:
    spy.store.put(obj("a", 1))
    with caplog.at_level(logging.ERROR):
        spy.store.replace([obj("a", 2, value="unreadable"), obj("b", 2)], 5)
    assert (spy.store.get("ns", "a"), spy.store.get("ns", "b")) == ("a@1", "b@2")
    assert "a cannot be read" in caplog.text


def test_who_puts_an_unreadable_object_hears_of_it(spy: Spy) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        spy.store.put(obj("a", 1, value="unreadable"))
    assert spy.store.get("ns", "a") is None


@given(st.permutations(range(1, 8)), st.integers(1, 7))
def test_any_order_of_events_ends_in_the_newest_state(order: list[int], deleted: int) -> None:
    """Object number n of seven that had the same name; each but the last was deleted."""
    events = [("put", n) for n in order] + [("remove", n) for n in order if n < 7]
    events.insert(0, ("remove", deleted) if deleted < 7 else ("put", 7))
    spy = Spy()
    for verb, n in events:
        getattr(spy.store, verb)(obj("a", n, uid=f"uid-{n}"))
    assert spy.store.all() == ["a@7"]
    assert spy.store.group("a") == ["a@7"]
