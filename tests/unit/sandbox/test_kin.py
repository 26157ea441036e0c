"""Looking for processes: whose they are."""

import os
import subprocess
import threading
from typing import Any

import pytest

from cloister_sandbox import kin
from cloister_sandbox.births import BIRTHS


class Living:
    """The numbers of trees, all of which live."""

    hold = True

    def astray(self, _: int) -> bool:
        """Whether no tree has it."""
        return False


def test_what_has_neither_number_nor_mark_ends_with_the_next_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that starts another at once, and ends, is quicker than who gives it a number.

    A program that is just being started has none either, and goes on.
    """
    table = {1: (0, 1), 53: (52, 52), **{pid: (1, pid) for pid in (50, 51, 52, 54, 55)}}
    carried = {50: 7, 51: 0, 52: 8, 53: 8, 54: 0, 55: 0}
    monkeypatch.setattr(kin, "_table", lambda: table)
    monkeypatch.setattr(kin, "number_of", carried.get)
    monkeypatch.setattr(kin, "_marked", {51: set(), 54: {"goes-on"}, 55: {"made-up"}}.get)
    monkeypatch.setattr("cloister_sandbox.kin.os.getpid", lambda: 1)
    monkeypatch.setattr(kin._marks, "_numbers", {"ends": 7, "goes-on": 8})
    monkeypatch.setattr(kin._marks, "_living", {7, 8})
    monkeypatch.setattr(kin._marks, "hold", True)
    assert kin.members(50, "ends") == [50, 51, 55]
    assert kin.members(52, "goes-on") == [51, 52, 53, 54, 55]
    with BIRTHS.one():
        # As a thread that starts programs says of its children; and where the kernel says nothing.
        for started, found in (({55}, [50, 51]), ({51, 55}, [50]), (None, [50])):
            monkeypatch.setattr(kin, "_children_of", lambda _, these=started: these)
            assert kin.members(50, "ends") == found

        def another(_: object) -> set[int]:
            with BIRTHS.one():
                return set()

        monkeypatch.setattr(kin, "_children_of", another)
        assert kin.members(50, "ends") == [50]
    monkeypatch.setattr(kin._marks, "hold", False)
    assert kin.members(50, "ends") == [50]


def test_a_thread_knows_what_it_started() -> None:
    with subprocess.Popen(["sleep", "300"]) as started:
        assert started.pid in (kin._children_of([threading.get_native_id()]) or ())
        started.kill()
    assert kin._children_of([2**30]) is None
    assert kin._children_of([]) == set()


def test_processes_far_below_each_other_are_each_looked_at_once() -> None:
    """Each is the only one of its session, and the child of the one before."""

    class Table(dict[int, tuple[int, int]]):
        looks = 0

        def __getitem__(self, pid: int) -> tuple[int, int]:
            self.looks += 1
            return super().__getitem__(pid)

        def items(self) -> Any:
            self.looks += len(self)
            return super().items()

    first = 10_000_000  # more than any process has here
    table = Table({pid: (pid - 1, pid) for pid in range(first, first + 2000)})
    assert kin._below(table, {first}, {first}) == set(table)
    assert table.looks < 5 * len(table)


@pytest.mark.parametrize(
    ("found", "sessions", "whole"),
    [
        ({10_000_000}, {10_000_000}, {10_000_000, 11_000_000, 12_000_000, 13_000_000}),
        ({20_000_000}, set(), {20_000_000, 21_000_000, 22_000_000, 23_000_000}),
        ({11_000_000}, set(), {11_000_000, 12_000_000}),
        (set(), {20_000_000}, {20_000_000, 21_000_000, 22_000_000, 23_000_000}),
    ],
    ids=["leader", "orphan", "member", "session"],
)
def test_who_belongs_to_a_tree(found: set[int], sessions: set[int], whole: set[int]) -> None:
    table = {
        10_000_000: (1, 10_000_000),  # leads a session
        11_000_000: (10_000_000, 10_000_000),
        12_000_000: (11_000_000, 12_000_000),  # left it
        13_000_000: (1, 10_000_000),  # lost its parent
        20_000_000: (1, 20_000_000),
        21_000_000: (20_000_000, 21_000_000),
        22_000_000: (21_000_000, 21_000_000),
        23_000_000: (1, 21_000_000),
        30_000_000: (1, 30_000_000),
    }
    assert kin._below(table, found, sessions) == whole


def test_a_list_of_the_kernels_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells whole words, and a page at a time, of who is behind the many that a tool starts."""
    pids = list(range(10_000, 12_000))
    listed = b"".join(b"%d " % pid for pid in pids)

    def a_page(_: int, size: int, offset: int) -> bytes:
        return listed[offset : offset + min(size, 4092)]

    monkeypatch.setattr("cloister_sandbox.rereading.os.pread", a_page)
    assert kin.orphans() == pids
    assert kin.children(os.getpid()) == pids


def test_who_is_seen_in_no_table_is_looked_for_among_orphans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The newest come last, and those of others are looked at once."""
    asked: list[int] = []
    ended: list[int] = []

    def carried(pid: int) -> int:
        asked.append(pid)
        return 7 if pid == 4000 else 8

    monkeypatch.setattr(kin, "_members", lambda *_: [])
    monkeypatch.setattr(kin, "orphans", lambda: [*range(2, 1000), 4000] if not ended else [2, 3])
    monkeypatch.setattr(kin, "number_of", carried)
    monkeypatch.setattr(kin, "_marks", Living())
    monkeypatch.setattr(kin, "signal_all", lambda pids, _: ended.extend(pids))
    assert kin._strike(kin.NOBODY, ("tree",), 7, None, set()) == [4000]
    assert ended == [4000]
    assert asked == [4000, *range(999, 1, -1)]


def test_an_end_that_a_tracer_keeps_to_itself_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once it tells that there may be more, as of who starts another and ends."""
    monkeypatch.setattr(kin, "_members", lambda *_: [])
    monkeypatch.setattr(kin, "orphans", lambda: [4000])
    monkeypatch.setattr(kin, "number_of", lambda _: 7)
    monkeypatch.setattr(kin, "_has_ended", lambda _: True)
    monkeypatch.setattr(kin, "_marks", Living())
    monkeypatch.setattr(kin, "signal_all", lambda *_: None)
    over: set[int] = set()
    assert kin._strike(kin.NOBODY, ("tree",), 7, None, over) == [4000]
    assert kin._strike(kin.NOBODY, ("tree",), 7, None, over) == []


async def test_where_no_children_are_listed_the_event_loop_reads_nobodys_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process may keep them from being read, for as long as it likes."""
    readers: list[threading.Thread] = []

    def members(*_: object) -> list[int]:
        readers.append(threading.current_thread())
        return [50, 51]

    monkeypatch.setattr(kin, "CHILDREN_ARE_LISTED", False)
    monkeypatch.setattr(kin, "members", members)
    assert await kin.background(50, "it", []) == [51]
    assert readers
    assert threading.main_thread() not in readers
