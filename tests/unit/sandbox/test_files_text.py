"""ReadText and Edit."""

import difflib
import os
import random
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import texts
from support.file_calls import FileCalls
from support.sandbox_server import Sandbox, refused

STATUS = grpc.StatusCode


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[FileCalls]:
    with claimed.worker() as channel:
        yield FileCalls(channel)


def read(files: FileCalls, path: str, **fields: Any) -> exec_pb2.TextSlice:
    return files.stub.ReadText(exec_pb2.ReadTextRequest(path=path, **fields), timeout=20)


def edit(
    files: FileCalls, path: str, *edits: tuple[str, str] | tuple[str, str, bool], **fields: Any
) -> exec_pb2.EditResult:
    request = exec_pb2.EditRequest(path=path, **fields)
    for old, new, *rest in edits:
        request.edits.add(old_string=old, new_string=new, replace_all=bool(rest and rest[0]))
    return files.stub.Edit(request, timeout=20)


@pytest.mark.parametrize("content", [b"", b"one", b"one\n", b"a\r\nb\n\nc", b"\n\n", b"x\n" * 300])
def test_any_range_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(texts, "_CHUNK", 7)
    path = tmp_path / "f"
    path.write_bytes(content)
    lines = content.split(b"\n")
    lines = [each + b"\n" for each in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    with path.open("rb") as file:
        for first in range(6):
            for last in (0, 1, 2, 5, 299):
                for bound in (0, 1, 5, 10_000):
                    found = texts.read_lines(file.fileno(), first, last, bound)
                    wanted = b"".join(lines[max(first - 1, 0) : last or None])
                    assert found.data == wanted[:bound]
                    assert found.truncated == (len(wanted) > bound)
                    assert (found.total, found.size) == (len(lines), len(content))


def test_text_is_read_with_its_etag(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "t.txt").write_text("eins\nzwei\ndreié\n")
    found = read(files, "t.txt", start_line=2, end_line=3)
    assert (found.text, found.total_lines, found.size) == ("zwei\ndreié\n", 3, 17)
    assert not found.truncated
    assert found.etag == files.stat("t.txt").etag
    cut = read(files, "t.txt", max_bytes=15)
    assert (cut.text, cut.truncated) == ("eins\nzwei\ndrei", True), "no half character"
    assert read(files, "t.txt", start_line=9).text == ""
    (claimed.workspace / "bin").write_bytes(b"\xff\xfe\x00")
    with refused(STATUS.FAILED_PRECONDITION, reason="NOT_TEXT"):
        read(files, "bin")
    with refused(STATUS.INVALID_ARGUMENT, "max_bytes"):
        read(files, "t.txt", max_bytes=2_000_000)
    with refused(STATUS.INVALID_ARGUMENT, "end_line"):
        read(files, "t.txt", start_line=3, end_line=2)


def test_edits_build_on_each_other(files: FileCalls, claimed: Sandbox) -> None:
    path = claimed.workspace / "e.py"
    path.write_text("a = 1\nb = 1\nc = 1\n")
    path.chmod(0o750)
    result = edit(files, "e.py", ("a = 1", "a = 2"), ("a = 2", "a = 3"), (" = 1", " = 9", True))
    assert path.read_text() == "a = 3\nb = 9\nc = 9\n"
    assert list(result.counts) == [1, 1, 2]
    assert (result.entry.mode, result.entry.etag) == (0o750, files.stat("e.py").etag)
    assert result.unified_diff == (
        "--- a/e.py\n+++ b/e.py\n@@ -1,3 +1,3 @@\n-a = 1\n-b = 1\n-c = 1\n+a = 3\n+b = 9\n+c = 9\n"
    )


@pytest.mark.parametrize(
    ("edits", "reason", "message"),
    [
        ([("one", "1"), ("absent", "x")], "OLD_STRING_NOT_FOUND", "edits[1].old_string does"),
        ([("one", "1"), ("o", "x")], "OLD_STRING_NOT_UNIQUE", "edits[1].old_string occurs 3"),
        ([("a\nb", "x")], "OLD_STRING_NOT_FOUND", "edits[0].old_string does not occur; the"),
        ([("two", "x" * 30_000), ("x", "y" * 3000, True)], "TOO_LARGE", "the result"),
    ],
)
def test_all_edits_or_none(
    files: FileCalls, claimed: Sandbox, edits: list[Any], reason: str, message: str
) -> None:
    path = claimed.workspace / "none.txt"
    path.write_bytes(b"one two foo a\r\nb")
    before = files.stat("none.txt")
    with refused(STATUS.FAILED_PRECONDITION, message, reason=reason):
        edit(files, "none.txt", *edits)
    assert files.stat("none.txt") == before


def test_an_edit_of_another_version_is_refused(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "v.txt").write_text("one")
    etag = read(files, "v.txt").etag
    second = edit(files, "v.txt", ("one", "two"), if_etag=etag).entry.etag
    with refused(STATUS.ABORTED, reason="ETAG_MISMATCH"):
        edit(files, "v.txt", ("two", "three"), if_etag=etag)
    edit(files, "v.txt", ("two", "three"), if_etag=second)
    assert (claimed.workspace / "v.txt").read_text() == "three"


def test_a_repeated_edit_is_carried_out_once(files: FileCalls, claimed: Sandbox) -> None:
    path = claimed.workspace / "once.txt"
    path.write_text("x")
    first = edit(files, "once.txt", ("x", "xx"), request_id="edit-1")
    assert edit(files, "once.txt", ("x", "xx"), request_id="edit-1") == first
    assert path.read_text() == "xx"
    with refused(STATUS.ALREADY_EXISTS, reason="ID_CONFLICT"):
        edit(files, "once.txt", ("x", "y"), request_id="edit-1")
    # What failed is not kept: the same call may succeed later.
    with refused(STATUS.FAILED_PRECONDITION):
        edit(files, "once.txt", ("z", "q"), request_id="edit-2")
    path.write_text("z")
    edit(files, "once.txt", ("z", "q"), request_id="edit-2")
    assert path.read_text() == "q"


def test_edits_at_once_lose_none(files: FileCalls, claimed: Sandbox) -> None:
    path = claimed.workspace / "busy.txt"
    path.write_text("".join(f"<{n}>\n" for n in range(40)))
    threads = [
        threading.Thread(target=edit, args=(files, "busy.txt", (f"<{n}>", f"[{n}]")))
        for n in range(40)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert path.read_text() == "".join(f"[{n}]\n" for n in range(40))


def test_wrong_edits_name_the_field(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "w.txt").write_text("x")
    for edits, field in [([], "edits"), ([("", "y")], "edits[0].old_string")]:
        with refused(STATUS.INVALID_ARGUMENT, field):
            edit(files, "w.txt", *edits)
    with refused(STATUS.INVALID_ARGUMENT, "request_id"):
        edit(files, "w.txt", ("x", "y"), request_id="i" * 129)
    (claimed.workspace / "empty.txt").touch()
    edit(files, "empty.txt", ("", "filled"))
    assert (claimed.workspace / "empty.txt").read_text() == "filled"
    (claimed.workspace / "b.bin").write_bytes(b"\xff")
    with refused(STATUS.FAILED_PRECONDITION, reason="NOT_TEXT"):
        edit(files, "b.bin", ("x", "y"))
    for path, code in [
        ("absent", STATUS.NOT_FOUND),
        (".", STATUS.FAILED_PRECONDITION),
        ("../x", STATUS.PERMISSION_DENIED),
    ]:
        with refused(code):
            edit(files, path, ("x", "y"))


def test_a_hard_link_is_not_written_through(files: FileCalls, claimed: Sandbox) -> None:
    outside = claimed.workspace.parent / "edit-outside"
    outside.write_text("old")
    os.link(outside, claimed.workspace / "hard.txt")
    edit(files, "hard.txt", ("old", "new"))
    assert outside.read_text() == "old"
    assert (claimed.workspace / "hard.txt").read_text() == "new"


def test_diffs_can_be_applied(tmp_path: Path) -> None:
    seeded = random.Random(7)
    for number in range(60):
        old = [f"{seeded.randrange(12)}" for _ in range(seeded.randrange(40))]
        new = list(old)
        for _ in range(seeded.randrange(1, 5)):
            at = seeded.randrange(len(new) + 1)
            new[at : at + seeded.randrange(3)] = ["new"] * seeded.randrange(3)
        before, after = ("\n".join(each) + "\n" * seeded.randrange(2) for each in (old, new))
        diff = texts.unified_diff("f", before, after)
        path = tmp_path / "f"
        path.write_text(before)
        if before != after and before.strip():
            subprocess.run(
                ["patch", "-s", "-p1", "--no-backup-if-mismatch"],
                input=diff,
                text=True,
                cwd=tmp_path,
                check=True,
            )
            assert path.read_text() == after, number


def test_diffs_of_large_changes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("compared line by line")

    monkeypatch.setattr(difflib, "SequenceMatcher", never)
    before = "same\n" + "".join(f"old {n}\n" for n in range(5000)) + "end\n"
    after = "same\n" + "".join(f"new {n}\n" for n in range(4000)) + "end\n"
    diff = texts.unified_diff("f", before, after)
    assert diff.startswith("--- a/f\n+++ b/f\n@@ -1,5002 +1,4002 @@\n same\n-old 0\n")
    assert len(diff) < texts.MAX_DIFF + 100
    assert diff.endswith(f"[diff cut at {texts.MAX_DIFF} characters]\n")


def test_the_diff_of_a_large_change_is_left_out() -> None:
    """Its lines would take a gigabyte, of which sixty-four thousand characters are shown."""
    before, after = "same\n" + "a\n" * 2_000_000, "same\n" + "b\n" * 2_000_000
    tracemalloc.start()
    diff = texts.unified_diff("x", before, after)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert diff.startswith("--- a/x\n+++ b/x\n[diff left out: more than ")
    assert peak < 10 * len(before)


def test_the_diff_of_a_small_change_in_a_large_text() -> None:
    lines = [f"{number}\n" for number in range(1_000_000)]
    before = "".join(lines)
    lines[500_000] = "changed\n"
    diff = texts.unified_diff("x", before, "".join(lines))
    assert diff == (
        "--- a/x\n+++ b/x\n@@ -499998,7 +499998,7 @@\n 499997\n 499998\n 499999\n-500000\n"
        "+changed\n 500001\n 500002\n 500003\n"
    )
