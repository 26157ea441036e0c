"""The file tools where the server has no descriptor left: nothing that is there seems not to be."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import beneath
from cloister_sandbox.errors import Busy
from cloister_sandbox.failures import open_file
from cloister_sandbox.finds import find
from cloister_sandbox.matches import Matches
from cloister_sandbox.paths import Roots
from cloister_sandbox.toolset.patterns import Pattern
from cloister_sandbox.walks import walk
from cloister_sandbox.watches import Change, Watch
from support.descriptors import descriptors, left
from support.file_calls import eventually, found_by_ripgrep
from support.jobs import Jobs, read
from support.sandbox_server import Sandbox, Tools, refused

_ENOUGH = 8
"""Descriptors for whatever is tried here."""


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A workspace with a file in a directory in a directory, which was used before."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_text("x\n")
    made = Roots(tmp_path, (), ())
    os.close(made.directory(str(tmp_path)))
    return made


def answers(work: Callable[[], Any]) -> list[Any]:
    """What it answers with each number of descriptors that are left, but for failures."""
    found = []
    before = descriptors()
    for count in range(_ENOUGH):
        with left(count):
            try:
                found.append(work())
            except (OSError, Busy):
                continue
    assert descriptors() <= before
    assert len(found) < _ENOUGH, "it took none"
    return found


def test_what_cannot_be_searched_is_not_told_to_have_no_matches(roots: Roots) -> None:
    def names() -> list[str]:
        matches, _ = find(roots, str(roots.workspace), Pattern("**/*"), 10, lambda: False)
        return sorted(Path(each.path).name for each in matches)

    found = answers(names)
    assert found == [["a", "b", "f"]] * len(found) != []


def test_what_cannot_be_listed_is_not_passed_over(
    roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: object) -> int:
        raise OSError(errno.EMFILE, "no descriptor")

    top = roots.directory(str(roots.workspace))
    try:
        found = walk(top)
        assert next(found).name == "a"
        monkeypatch.setattr(beneath, "open_directory", lack)
        with pytest.raises(OSError, match="no descriptor"):
            next(found)
    finally:
        os.close(top)


def test_a_line_that_cannot_be_confirmed_is_not_told_to_have_changed(roots: Roots) -> None:
    path = roots.workspace / "a" / "b" / "f"
    said = found_by_ripgrep(path, "x\n").encode()

    def confirmed() -> tuple[int, int]:
        top = str(roots.workspace)
        with Matches(roots, top, top, lambda: False) as matches:
            return len(list(matches.feed(said))), matches.unconfirmed

    found = answers(confirmed)
    assert found == [(1, 0)] * len(found) != []


def test_a_file_that_cannot_be_opened_may_be_opened_later(roots: Roots) -> None:
    with left(0), pytest.raises(Busy, match="a/b/f: too many open files"):
        open_file(roots, "a/b/f")


def test_who_watches_is_told_when_a_directory_cannot_be(roots: Roots) -> None:
    """Else nothing of what happens in it would ever be told."""
    for count in range(_ENOUGH):
        watch = Watch(roots, ".", str(roots.workspace), recursive=True)
        new = roots.workspace / f"new{count}"
        (new / "in").mkdir(parents=True)
        try:
            with left(count), contextlib.suppress(Busy):
                told = watch.changes(lambda: False)
                assert told == [(Change.CREATED, str(new)), (Change.CREATED, str(new / "in"))]
                (new / "in" / "f").mkdir()
                assert watch.changes(lambda: False) == [(Change.CREATED, str(new / "in" / "f"))]
        finally:
            watch.close()


def test_who_watches_is_not_told_that_what_cannot_be_seen_is_gone(
    roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister_sandbox.watches._MAX_EVENTS", 1)
    watch = Watch(roots, ".", str(roots.workspace), recursive=False)
    try:
        for name in "cde":
            (roots.workspace / name).touch()
        with left(0), pytest.raises(Busy, match="too many open files"):
            watch.changes(lambda: False)
    finally:
        watch.close()


def test_shells_go_on_when_there_is_room_again(claimed: Sandbox) -> None:
    """Whatever their commands were told meanwhile."""
    with claimed.worker() as channel:
        tools, jobs = Tools(channel), Jobs(channel)
        tools.bash("x=kept")
        jobs.open("s")
        read(jobs.run("s", "x=kept"))
        why = "cannot be used: Too many open files"

        def refused_both() -> bool:
            """Unless the server closes something at the moment: then there is room for one."""
            with left(0, claimed.process.pid):
                told = tools.call("bash", command=":")
                failed = read(jobs.run("s", ":")).last.failed
            lacking = failed.kind == exec_pb2.ExecFailure.KIND_RESOURCE_LIMIT
            assert failed.message.endswith(why) is lacking
            return lacking and told.is_error and told.content[0].text.endswith(why)

        eventually(refused_both)
        assert tools.bash("echo $x") == "kept"
        assert read(jobs.run("s", "echo $x")).text == "kept\n"


def test_what_goes_on_is_not_forgotten(claimed: Sandbox) -> None:
    """Nor ended with a later command that runs out of time."""
    with claimed.worker() as channel:
        tools = Tools(channel)
        pid = tools.bash("sleep 60 & echo $!", context_id="behind")

        def ran() -> bool:
            """With one for a command, unless somebody else has that at the moment."""
            with left(1, claimed.process.pid):
                return tools.bash("echo on", context_id="behind") == "on"

        eventually(ran)
        late = tools.call("bash", context_id="behind", command="sleep 60", timeout_ms=200)
        assert late.is_error
        assert tools.bash(f"kill -0 {pid} && echo lives", context_id="behind") == "lives"
        tools.bash(f"kill {pid}", context_id="behind")


def test_a_size_that_cannot_be_given_is_not_told_to_be(claimed: Sandbox) -> None:
    first, size = (exec_pb2.TerminalSize(columns=80 + each, rows=24 + each) for each in (0, 1))
    with claimed.worker() as channel:
        jobs = Jobs(channel)
        script = "echo on; read x; stty size"
        stream = jobs.start("sh", "-c", script, process_id="sized", terminal=first)
        stream.line()

        def resize(size: exec_pb2.TerminalSize) -> None:
            request = exec_pb2.ResizeRequest(process_id="sized", size=size)
            jobs.processes.Resize(request, timeout=30)

        def is_refused() -> bool:
            """Unless the server closes something at the moment."""
            with left(0, claimed.process.pid), contextlib.suppress(pytest.fail.Exception):
                with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OUT_OF_RESOURCES"):
                    resize(first)
                return True
            return False

        eventually(is_refused)
        resize(size)
        jobs.write("sized", (0, b"\n", False))
        assert b"25 81" in b"".join(each.output.data for each in stream)
