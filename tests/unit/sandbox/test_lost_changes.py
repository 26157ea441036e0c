"""Watches while tools change more than the kernel keeps word of, or than is looked through."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cloister_sandbox.paths import Roots
from cloister_sandbox.watches import Change, Watch


class NeverLookedThrough(dict[int, str]):
    """The directories of a watch, one of which is looked up by its number alone."""

    def items(self) -> Any:
        raise AssertionError("all of them are looked through for one")


def test_a_directory_that_is_removed_costs_no_look_at_all_others(tmp_path: Path) -> None:
    """A tool removes thousands in a moment."""
    for name in "abc":
        (tmp_path / "d" / name).mkdir(parents=True)
    with closing(Watch(Roots(tmp_path, (), ()), "d", f"{tmp_path}/d", recursive=True)) as watch:
        watch._names = NeverLookedThrough(watch._names)
        (tmp_path / "d" / "b").rmdir()
        told = watch.changes(lambda: False)
        assert told == [(Change.REMOVED, f"{tmp_path}/d/b")]
        assert sorted(watch._names.values()) == ["", "a", "c"]
        # A new one of the same name is another one.
        (tmp_path / "d" / "b").mkdir()
        watch.changes(lambda: False)
        (tmp_path / "d" / "b" / "f").touch()
        assert (Change.CREATED, f"{tmp_path}/d/b/f") in watch.changes(lambda: False)


def test_a_directory_that_moves_takes_those_below_along(tmp_path: Path) -> None:
    (tmp_path / "d" / "a" / "deep").mkdir(parents=True)
    (tmp_path / "d" / "ab").mkdir()
    with closing(Watch(Roots(tmp_path, (), ()), "d", f"{tmp_path}/d", recursive=True)) as watch:
        (tmp_path / "d" / "a").rename(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "deep" / "f").touch()
        assert watch.changes(lambda: False) == [(Change.REMOVED, f"{tmp_path}/d/a")]
        assert sorted(watch._names.values()) == ["", "ab"]


def test_directories_whose_removal_was_lost_do_not_count(tmp_path: Path) -> None:
    queued = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for name in ("one", "two", "stays"):
        (tmp_path / "d" / name).mkdir(parents=True)
    with closing(Watch(Roots(tmp_path, (), ()), "d", f"{tmp_path}/d", recursive=True)) as watch:
        for number in range(queued):  # those that follow each other are one where they are the same
            os.utime(tmp_path / "d" / ("one", "two")[number % 2])
        for name in ("one", "two"):
            (tmp_path / "d" / name).rmdir()
        overflow = (Change.OVERFLOW, f"{tmp_path}/d")
        while overflow not in watch.changes(lambda: False):
            pass
        assert sorted(watch._names.values()) == ["", "stays"]
        (tmp_path / "d" / "stays" / "f").touch()
        assert (Change.CREATED, f"{tmp_path}/d/stays/f") in watch.changes(lambda: False)


@pytest.mark.parametrize("recursive", [True, False])
def test_a_watch_ends_with_its_path_though_that_was_lost(tmp_path: Path, recursive: bool) -> None:
    queued = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    path = tmp_path / "d"
    for name in ("one", "two"):
        (path / name).mkdir(parents=True)
    with closing(Watch(Roots(tmp_path, (), ()), "d", str(path), recursive=recursive)) as watch:
        for number in range(queued):
            os.utime(path / ("one", "two")[number % 2])
        path.rename(tmp_path / "elsewhere")
        path.mkdir()
        told: list[tuple[Change, str]] = []
        while (Change.OVERFLOW, str(path)) not in told:
            told = watch.changes(lambda: False)
        assert told[-1] == (Change.REMOVED, str(path))
        assert watch.ended
