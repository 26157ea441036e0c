"""Walking a tree, and its bounds."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_sandbox import changes, finds, walks, watches
from cloister_sandbox.errors import Busy, WrongState
from cloister_sandbox.paths import Roots
from cloister_sandbox.toolset.patterns import Pattern
from cloister_sandbox.walks import TooLarge, walk
from support.memory import grows_by_less_than


@pytest.mark.parametrize("strict", [True, False])
def test_of_more_directories_than_may_wait_no_more_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, strict: bool
) -> None:
    """One directory can hold millions: they are not gathered first and counted then."""
    monkeypatch.setattr(walks, "MAX_PENDING", 10)
    for number in range(50):
        (tmp_path / f"{number}").mkdir()
    root = os.open(tmp_path, os.O_RDONLY)
    seen: list[str] = []
    try:
        with pytest.raises(TooLarge, match="more than 10 directories"):
            seen.extend(each.name for each in walk(root, strict=strict))
        assert len(seen) == 10
    finally:
        os.close(root)


def test_of_the_last_level_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "MAX_PENDING", 10)
    for number in range(50):
        (tmp_path / f"{number}").mkdir()
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        assert len(list(walk(root, 1))) == 50
        with pytest.raises(TooLarge, match="more than 1 levels"):
            list(walk(root, 1, strict=True))
    finally:
        os.close(root)


def chain(root: Path, levels: int, wide: int) -> None:
    """Directories with long names in each other, and in the last one many."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    for number in range(wide):
        os.mkdir(f"{number:0250}", dir_fd=here)
    os.close(here)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A tree whose last level no path names; its removal is no work for Python's own."""
    chain(tmp_path, 300, 500)
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path / ("d" * 250))], check=True)


def test_directories_at_very_long_paths_are_passed_over(deep: Path) -> None:
    root = os.open(deep, os.O_RDONLY)
    try:
        lengths = [len(each.relative) for each in walk(root)]
        assert walks.MAX_PATH < max(lengths) < walks.MAX_PATH + 300
        assert len(lengths) == walks.MAX_PATH // 251 + 1
        with pytest.raises(TooLarge, match="at a path of more than"):
            list(walk(root, strict=True))
    finally:
        os.close(root)


def test_what_waits_takes_no_more_memory_than_its_names(tmp_path: Path) -> None:
    chain(tmp_path, 60, 4000)
    root = os.open(tmp_path, os.O_RDONLY)
    walking = walk(root)
    try:
        with grows_by_less_than(os.getpid(), 16 * 1024 * 1024):
            for _ in range(60 + 4000):
                next(walking)
    finally:
        walking.close()  # type: ignore[attr-defined]
        os.close(root)
        subprocess.run(["rm", "-rf", str(tmp_path / ("d" * 250))], check=True)


def test_of_long_names_fewer_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "MAX_WAITING", 100)
    for number in range(3):
        (tmp_path / f"{number:050}").mkdir()
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(TooLarge, match="long names"):
            list(walk(root))
    finally:
        os.close(root)


def test_of_long_paths_fewer_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        (tmp_path / f"{number}").touch()
        os.utime(tmp_path / f"{number}", (number, number))
    room = 3 * (len(str(tmp_path)) + 2)
    monkeypatch.setattr(finds, "MAX_KEPT", room)
    found, total = finds.find(
        Roots(tmp_path, (), ()), str(tmp_path), Pattern("*"), 100, lambda: False
    )
    assert [Path(each.path).name for each in found] == ["8", "7", "6"]
    assert total == 9


def test_directories_in_each_other_are_removed_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way back up takes memory for each level, and tools make millions of them."""
    monkeypatch.setattr(changes, "MAX_LEVELS", 5)
    roots = Roots(tmp_path, (), ())
    for levels in (5, 6):
        (tmp_path / "top" / "/".join("d" * levels)).mkdir(parents=True)

        def remove() -> None:
            changes.remove(
                roots, "top", str(tmp_path / "top"), recursive=True, stopped=lambda: False
            )

        if levels == 5:
            remove()
            assert not (tmp_path / "top").exists()
        else:
            with pytest.raises(WrongState, match="more than 5 levels") as error:
                remove()
            assert error.value.reason == "TREE_TOO_LARGE"


def test_links_to_directories_that_wait_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hundreds of thousands with long paths the server would have no memory left."""
    above = tmp_path / ("d" * 200)
    above.mkdir()
    for number in range(9):
        (above / f"f{number}").symlink_to("nowhere")
        (above / f"d{number}").symlink_to(tmp_path)
    roots = Roots(tmp_path, (), ())
    each = finds._EACH + 2 * len(str(tmp_path)) + 210
    monkeypatch.setattr(finds, "MAX_WAITING", 12 * each)
    found, _ = finds.find(roots, str(tmp_path), Pattern("*/*/none"), 9, lambda: False)
    assert found == []
    monkeypatch.setattr(finds, "MAX_WAITING", 6 * each)
    with pytest.raises(TooLarge, match="too many links"):
        finds.find(roots, str(tmp_path), Pattern("*/*/none"), 9, lambda: False)


@pytest.mark.long
def test_a_link_that_becomes_a_long_way_keeps_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It led nowhere when it was looked at; what tools put there then can be a way of hours."""
    for number in range(1200):
        (tmp_path / f"{number}").symlink_to(f"{number + 1}")
    (tmp_path / "1200").touch()
    (tmp_path / "short").symlink_to("1200")
    (tmp_path / "too-long").symlink_to(f"{'d' * 256}/f")
    monkeypatch.setattr(finds, "_leads", lambda _: (False, False))
    found, _ = finds.find(
        Roots(tmp_path, (), ()), str(tmp_path), Pattern("{0,s,t}*"), 9, lambda: False
    )
    assert {Path(each.path).name for each in found} == {"short", "too-long"}


def test_of_long_paths_fewer_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "MAX_NAMES", 100)
    roots = Roots(tmp_path, (), ())
    for number in range(9):
        (tmp_path / f"{number:020}").mkdir()
    with pytest.raises(Busy) as error:
        watches.Watch(roots, ".", str(tmp_path), recursive=True)
    assert error.value.reason == "TOO_MANY_DIRECTORIES"
    for number in range(6):
        (tmp_path / f"{number:020}").rmdir()
    watch = watches.Watch(roots, ".", str(tmp_path), recursive=True)
    for number in range(20):  # what is gone makes room
        (tmp_path / f"{number + 100:020}").mkdir()
        (tmp_path / f"{number + 100:020}").rmdir()
        watch.changes(lambda: False)
    assert watch._named == 3 * 20
    watch.close()


def test_of_changes_at_long_paths_fewer_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "_MAX_TOLD", 4 * len(str(tmp_path)))
    watch = watches.Watch(Roots(tmp_path, (), ()), ".", str(tmp_path), recursive=False)
    for number in range(9):
        (tmp_path / f"{number}").touch()
    assert watch.changes(lambda: False) == [(watches.Change.OVERFLOW, str(tmp_path))]
    watch.close()


def test_a_path_that_is_listed_twice_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a directory that a tool changes while it is listed."""
    path = tmp_path / "f"
    path.touch()

    def twice(_: int) -> Iterator[str]:
        yield "f"
        path.chmod(0o600)
        yield "f"

    monkeypatch.setattr(walks, "_names", twice)
    found, total = finds.find(
        Roots(tmp_path, (), ()), str(tmp_path), Pattern("*"), 1, lambda: False
    )
    assert ([each.path for each in found], total) == ([str(path)], 2)
