"""Move, Remove and Watch."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox import watches
from cloister_sandbox.errors import Busy
from cloister_sandbox.paths import Roots
from support.file_calls import FileCalls, eventually
from support.sandbox_server import Sandbox, refused

STATUS = grpc.StatusCode
EVENT = exec_pb2.WatchEvent
Told = tuple[int, str]


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[FileCalls]:
    with claimed.worker() as channel:
        yield FileCalls(channel)


def test_move(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace
    (root / "m").mkdir()
    (root / "m" / "a").write_text("a")
    (root / "m" / "b").write_text("b")
    entry = files.move("m/a", "m/c")
    assert (entry.path, entry.size) == (str(root / "m" / "c"), 1)
    with refused(STATUS.ALREADY_EXISTS, "m/b: file already exists", "EXISTS"):
        files.move("m/c", "m/b")
    assert (root / "m" / "b").read_text() == "b"
    files.move("m/c", "m/b", overwrite=True)
    assert [each.name for each in (root / "m").iterdir()] == ["b"]
    assert (root / "m" / "b").read_text() == "a"
    (root / "m2").mkdir()
    with refused(STATUS.ALREADY_EXISTS):
        files.move("m", "m2")
    assert files.move("m", "m3").type == exec_pb2.Entry.TYPE_DIRECTORY
    with refused(STATUS.NOT_FOUND):
        files.move("m", "m4")
    with refused(STATUS.FAILED_PRECONDITION):
        files.move("m3", "m3/inside", overwrite=True)


@pytest.mark.parametrize(
    ("source", "target", "code", "words"),
    [
        ("nothing", "x", STATUS.NOT_FOUND, "nothing: no such file"),
        ("no/such", "x", STATUS.NOT_FOUND, "no/such: no such file"),
        ("names/f", "no/x", STATUS.NOT_FOUND, "no/x: no such file"),
        ("names/f", "names/d", STATUS.FAILED_PRECONDITION, "names/d: is a directory"),
        ("names/d", "names/f", STATUS.FAILED_PRECONDITION, "names/f: not a directory"),
        ("names/e", "names/d", STATUS.FAILED_PRECONDITION, "names/d: directory not empty"),
        ("names", "names/x", STATUS.FAILED_PRECONDITION, "names -> names/x: invalid"),
    ],
)
def test_a_move_names_what_it_fails_at(
    files: FileCalls,
    claimed: Sandbox,
    source: str,
    target: str,
    code: grpc.StatusCode,
    words: str,
) -> None:
    root = claimed.workspace / "names"
    (root / "d" / "full").mkdir(parents=True, exist_ok=True)
    (root / "e").mkdir(exist_ok=True)
    (root / "f").touch()
    with refused(code, words):
        files.move(source, target, overwrite=True)


def test_a_link_itself_is_moved_and_removed(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "pointed").write_text("x")
    (claimed.workspace / "arrow").symlink_to("pointed")
    (claimed.workspace / "way-out").symlink_to("/etc")
    moved = files.move("arrow", "arrow2")
    assert (moved.type, moved.symlink_target) == (exec_pb2.Entry.TYPE_SYMLINK, "pointed")
    files.move("way-out", "way-out2")
    files.remove("arrow2")
    files.remove("way-out2", recursive=True)
    assert (claimed.workspace / "pointed").exists()
    assert Path("/etc/passwd").exists()


@pytest.mark.parametrize(
    "path", [".", "", "..", "/", "{w}", "{w}/..", "{x}", "{x}/uploads", "{x}/uploads/f", "/etc/x"]
)
def test_the_roots_and_what_is_outside_stay(files: FileCalls, claimed: Sandbox, path: str) -> None:
    extra = claimed.workspace.parent / "extra"
    (extra / "uploads").mkdir(parents=True, exist_ok=True)
    (extra / "uploads" / "f").touch()
    (claimed.workspace / "stays").touch()
    path = path.format(w=claimed.workspace, x=extra)
    with refused(STATUS.PERMISSION_DENIED, reason="PATH_REFUSED"):
        files.remove(path, recursive=True)
    with refused(STATUS.PERMISSION_DENIED, "source: ", "PATH_REFUSED"):
        files.move(path, "elsewhere")
    with refused(STATUS.PERMISSION_DENIED, "destination: ", "PATH_REFUSED"):
        files.move("stays", path, overwrite=True)
    assert (claimed.workspace / "stays").exists()
    assert (extra / "uploads" / "f").exists()


def test_remove(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace / "rm"
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "f").touch()
    os.mkfifo(root / "d" / "pipe")
    outside = claimed.workspace.parent / "rm-outside"
    outside.mkdir()
    (outside / "kept").touch()
    (root / "d" / "link").symlink_to(outside)
    with refused(STATUS.FAILED_PRECONDITION, reason="NOT_EMPTY"):
        files.remove("rm/d")
    files.remove("rm/d/e")
    files.remove("rm/d", recursive=True)
    assert list(root.iterdir()) == []
    assert (outside / "kept").exists()
    with refused(STATUS.NOT_FOUND):
        files.remove("rm/d", recursive=True)


def test_a_deep_and_a_wide_tree_are_removed(files: FileCalls, claimed: Sandbox) -> None:
    here = os.open(claimed.workspace, os.O_RDONLY)
    for _ in range(3000):  # far beyond the longest path the kernel takes
        os.mkdir("deep-directory", dir_fd=here)
        below = os.open("deep-directory", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (claimed.workspace / "wide").mkdir()
    for number in range(5000):
        (claimed.workspace / "wide" / f"{number}").touch()
    assert files.stat("deep-directory").type == exec_pb2.Entry.TYPE_DIRECTORY
    with refused(STATUS.FAILED_PRECONDITION, reason="TREE_TOO_LARGE"):
        files.download("deep-directory", tree=True)
    for path in ("deep-directory", "wide"):
        files.remove(path, recursive=True)
        with refused(STATUS.NOT_FOUND):
            files.stat(path)


class Watcher:
    """A watch and what it told."""

    def __init__(self, files: FileCalls, path: str, *, recursive: bool = False) -> None:
        request = exec_pb2.WatchRequest(path=path, recursive=recursive)
        self.call = files.stub.Watch(request, timeout=60)
        assert next(self.call).type == EVENT.TYPE_READY
        self._events: queue.Queue[Told | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self.call:
                self._events.put((event.type, event.path))
        except grpc.RpcError:
            pass
        self._events.put(None)

    def until(self, wanted: Callable[[Told], bool]) -> list[Told]:
        """Everything told until an event is the wanted one."""
        told: list[Told] = []
        while True:
            event = self._events.get(timeout=20)
            assert event is not None, told
            told.append(event)
            if wanted(event):
                return told

    def rest(self) -> list[Told]:
        """Everything told until the stream ended."""
        told: list[Told] = []
        while (event := self._events.get(timeout=20)) is not None:
            told.append(event)
        return told


def test_changes_are_told_in_their_order(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace / "watched"
    root.mkdir()
    (root / "old").write_text("1")
    watcher = Watcher(files, "watched")
    (root / "old").write_text("22")
    told = watcher.until(lambda each: each[0] == EVENT.TYPE_MODIFIED)
    assert told[-1] == (EVENT.TYPE_MODIFIED, str(root / "old"))
    (root / "new").write_text("x")
    (root / "new").rename(root / "newer")
    (root / "newer").unlink()
    (root / "end").touch()
    told = watcher.until(lambda each: each == (EVENT.TYPE_CREATED, str(root / "end")))
    plain = [each for each in told if each[0] != EVENT.TYPE_MODIFIED]
    assert plain == [
        (EVENT.TYPE_CREATED, str(root / "new")),
        (EVENT.TYPE_REMOVED, str(root / "new")),
        (EVENT.TYPE_CREATED, str(root / "newer")),
        (EVENT.TYPE_REMOVED, str(root / "newer")),
        (EVENT.TYPE_CREATED, str(root / "end")),
    ]
    watcher.call.cancel()


def test_an_upload_is_told_when_it_is_complete(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace / "arriving"
    root.mkdir()
    watcher = Watcher(files, "arriving", recursive=True)
    files.upload("arriving/there/f", b"x" * 100_000)
    told = watcher.until(lambda each: each[1] == str(root / "there" / "f"))
    assert {each[1] for each in told} == {str(root / "there"), str(root / "there" / "f")}
    watcher.call.cancel()


def test_what_is_not_there_is_named_once_when_it_is_removed(files: FileCalls) -> None:
    with refused(STATUS.NOT_FOUND, "nothing: no such file"):
        files.remove("nothing", recursive=True)


def test_new_directories_are_watched_with_what_is_in_them(
    files: FileCalls, claimed: Sandbox
) -> None:
    root = claimed.workspace / "rec"
    (root / "a").mkdir(parents=True)
    watcher = Watcher(files, "rec", recursive=True)
    for number in range(50):
        (root / f"n{number}" / "x" / "y").mkdir(parents=True)
        (root / f"n{number}" / "x" / "y" / "f").touch()
    missing = {str(root / f"n{number}" / "x" / "y" / "f") for number in range(50)}

    def found(event: Told) -> bool:
        missing.discard(event[1])
        return not missing

    watcher.until(found)
    (root / "n7").rename(root / "moved")
    watcher.until(lambda each: each == (EVENT.TYPE_CREATED, str(root / "moved" / "x" / "y" / "f")))
    (root / "moved" / "x" / "y" / "g").touch()
    watcher.until(lambda each: each == (EVENT.TYPE_CREATED, str(root / "moved" / "x" / "y" / "g")))
    watcher.call.cancel()


def test_a_watch_ends_with_its_path(files: FileCalls, claimed: Sandbox) -> None:
    for replaced in (False, True):
        path = claimed.workspace / "ending"
        path.mkdir()
        watcher = Watcher(files, "ending")
        if replaced:
            path.rename(f"{path}-away")
        else:
            path.rmdir()
        assert watcher.rest() == [(EVENT.TYPE_REMOVED, str(path))]


def test_a_single_file_is_watched(files: FileCalls, claimed: Sandbox) -> None:
    path = claimed.workspace / "single"
    path.touch()
    watcher = Watcher(files, "single")
    path.write_text("x")
    assert watcher.until(lambda _: True) == [(EVENT.TYPE_MODIFIED, str(path))]
    watcher.call.cancel()


def test_wrong_watches(files: FileCalls, claimed: Sandbox) -> None:
    for path, code in [("/etc", STATUS.PERMISSION_DENIED), ("none", STATUS.NOT_FOUND)]:
        with refused(code):
            next(files.stub.Watch(exec_pb2.WatchRequest(path=path), timeout=10))


def test_only_so_many_watches_and_none_is_activity(files: FileCalls, claimed: Sandbox) -> None:
    request = exec_pb2.WatchRequest(path=".")
    calls: list[Any] = [files.stub.Watch(request, timeout=60) for _ in range(32)]
    for each in calls:
        next(each)
    with refused(STATUS.RESOURCE_EXHAUSTED, reason="TOO_MANY_WATCHES"):
        next(files.stub.Watch(request, timeout=10))
    with claimed.worker() as channel:
        runtime = exec_pb2_grpc.RuntimeStub(channel)
        assert runtime.Activity(exec_pb2.ActivityRequest(), timeout=5).running_calls == 0
    for each in calls:
        each.cancel()

    def again() -> bool:
        call = files.stub.Watch(request, timeout=10)
        try:
            next(call)
        except grpc.RpcError:
            return False
        call.cancel()
        return True

    eventually(again)


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [("MAX_DIRECTORIES", 5, "more than 5 directories"), ("WALK_SECONDS", 0.0, "too many files")],
)
def test_a_tree_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: float, said: str
) -> None:
    monkeypatch.setattr(watches, bound, value)
    for number in range(6):
        (tmp_path / f"{number}").mkdir()
    with pytest.raises(Busy, match=said):
        watches.Watch(Roots(tmp_path, (), ()), ".", str(tmp_path), recursive=True)
    opened = Path("/proc/self/fd").iterdir()
    links = [os.fspath(each.readlink()) for each in opened if each.is_symlink()]
    assert not [each for each in links if "inotify" in each or each.startswith(str(tmp_path))]


def test_more_than_can_be_told_is_an_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "_MAX_EVENTS", 10)
    watch = watches.Watch(Roots(tmp_path, (), ()), ".", str(tmp_path), recursive=True)
    (tmp_path / "d").mkdir()
    for number in range(30):
        (tmp_path / f"{number}").touch()
    assert watch.changes(lambda: False) == [(watches.Change.OVERFLOW, str(tmp_path))]
    (tmp_path / "d" / "seen").touch()
    assert watch.changes(lambda: False)[0] == (
        watches.Change.CREATED,
        str(tmp_path / "d" / "seen"),
    )
    watch.close()


def test_changes_of_one_file_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    watch = watches.Watch(Roots(tmp_path, (), ()), ".", str(tmp_path), recursive=False)
    for _ in range(100):
        with (tmp_path / "f").open("a") as file:
            file.write("x")
        (tmp_path / "f").chmod(0o600)
    assert watch.changes(lambda: False) == [(watches.Change.MODIFIED, str(tmp_path / "f"))]
    watch.close()
