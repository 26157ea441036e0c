"""Glob and Grep."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from support.false_ripgrep import with_ripgrep
from support.file_calls import FileCalls, eventually
from support.sandbox_server import Sandbox, Tools, refused

STATUS = grpc.StatusCode


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[FileCalls]:
    with claimed.worker() as channel:
        yield FileCalls(channel)


def glob(files: FileCalls, pattern: str, **fields: Any) -> exec_pb2.GlobResult:
    request = exec_pb2.GlobRequest(pattern=pattern, **fields)
    return files.stub.Glob(request, timeout=30)


def test_the_newest_files_come_first(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace / "globbed"
    (root / "sub").mkdir(parents=True)
    for age, name in enumerate(["a.py", "sub/b.py", "c.txt", "d.py", "e.py"]):
        (root / name).write_text(name)
        os.utime(root / name, (1_000_000 - age // 2, 1_000_000 - age // 2))
    (root / "out.py").symlink_to("/etc/passwd")
    (root / "inside").symlink_to("a.py")
    found = glob(files, "**/*.py", path="globbed")
    assert [os.path.relpath(each.path, root) for each in found.entries] == [
        "a.py",
        "sub/b.py",
        "d.py",
        "e.py",
    ]
    assert found.total_matches == 4
    assert found.entries[0].etag == files.stat("globbed/a.py").etag
    assert glob(files, "in*", path="globbed").entries[0].symlink_target == "a.py"
    few = glob(files, "**/*.py", path="globbed", limit=2)
    assert list(few.entries) == list(found.entries)[:2]
    assert few.total_matches == 4
    for path in ("globbed/a.py", "globbed/none"):
        assert glob(files, "*", path=path) == exec_pb2.GlobResult()


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "a/../../*", "x" * 5000, "{a,b}" * 8])
def test_wrong_patterns(files: FileCalls, pattern: str) -> None:
    with refused(STATUS.INVALID_ARGUMENT, "pattern"):
        glob(files, pattern)


def test_wrong_places(files: FileCalls) -> None:
    for path in ("/etc", "..", "a\0b"):
        with refused(STATUS.PERMISSION_DENIED, reason="PATH_REFUSED"):
            glob(files, "*", path=path)
        with refused(STATUS.PERMISSION_DENIED, reason="PATH_REFUSED"):
            files.grep("x", path=path)
    with refused(STATUS.INVALID_ARGUMENT, "limit"):
        glob(files, "*", limit=10_001)
    with refused(STATUS.NOT_FOUND):
        files.grep("x", path="none")


def test_the_answer_fits_into_a_message(files: FileCalls, claimed: Sandbox) -> None:
    deep = claimed.workspace / "wide" / "/".join(["d" * 200] * 10)
    deep.mkdir(parents=True)
    for number in range(2000):
        (deep / f"f{number}").touch()
    found = glob(files, "**/f*", path="wide", limit=10_000)
    assert found.total_matches == 2000
    assert 1000 < len(found.entries) < 2000
    assert found.ByteSize() < 4 * 1024 * 1024


def test_lines_with_their_neighbours(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace / "grepped"
    root.mkdir()
    (root / "a.py").write_text("one\ntwo needle\nthree\nfour\n")
    (root / "b.txt").write_text("NEEDLE\n")
    (root / ".hidden").write_text("needle\n")
    with open(os.fsencode(root) + b"/odd-\xff", "wb") as file:  # noqa: PTH123 - no text
        file.write(b"needle \xff\n")
    lines, summary = files.grep("needle", path="grepped", context_lines=1)
    assert lines == [
        f"{root}/a.py-1-one",
        f"{root}/a.py:2:two needle",
        f"{root}/a.py-3-three",
        f"{root}/odd-\ufffd:1:needle \ufffd",
    ]
    assert (summary.matches, summary.files, summary.truncated) == (2, 2, False)
    assert list(summary.warnings) == []
    assert len(files.grep("needle", path="grepped", ignore_case=True)[0]) == 3
    assert len(files.grep("needle", path="grepped", include_ignored=True)[0]) == 3
    assert len(files.grep("needle", path="grepped", glob="*.py")[0]) == 1
    assert files.grep("needle", path="grepped/a.py")[0] == [f"{root}/a.py:2:two needle"]
    assert files.grep("absent", path="grepped") == ([], exec_pb2.GrepSummary())


def test_the_tool_and_the_service_find_the_same(
    files: FileCalls, tools: Tools, claimed: Sandbox
) -> None:
    root = claimed.workspace / "engine"
    (root / "d").mkdir(parents=True)
    for number in range(30):
        (root / "d" / f"{number}.txt").write_text(f"x{number}\n\nxx\n")
    lines, _ = files.grep("x+", path="engine")
    assert "\n".join(lines) + "\n" == tools.text("grep", pattern="x+", path="engine")
    found = glob(files, "**/*.txt", path="engine")
    assert "\n".join(e.path for e in found.entries) == tools.text(
        "glob", pattern="**/*.txt", path="engine"
    )


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("pattern", {"pattern": "(unclosed"}),
        ("pattern", {"pattern": "a\0b"}),
        ("pattern", {"pattern": r"a\nb"}),
        ("pattern", {"pattern": "a\nb"}),
        ("pattern", {"pattern": "(a{1000}){10000}"}),
        ("glob", {"pattern": "x", "glob": "{a"}),
        ("context_lines", {"pattern": "x", "context_lines": 51}),
        ("max_matches", {"pattern": "x", "max_matches": 100_001}),
    ],
)
def test_wrong_requests_name_the_field(
    files: FileCalls, claimed: Sandbox, field: str, fields: dict[str, Any]
) -> None:
    (claimed.workspace / "any.txt").write_text("x")
    with refused(STATUS.INVALID_ARGUMENT, field):
        files.grep(**fields)


def test_a_file_with_the_name_of_an_error_is_no_wrong_pattern(tmp_path: Path) -> None:
    complaint = "./regex parse error: Permission denied (os error 13)"
    summary = '{"type":"summary","data":{}}'
    script = f"echo '{complaint}' >&2\necho '{summary}'\nexit 2\n"
    with with_ripgrep(tmp_path, script) as server, server.worker() as channel:
        lines, found = FileCalls(channel).grep("x")
    assert not lines
    assert not found.truncated


def test_what_has_too_long_a_path_to_be_searched_is_told(
    files: FileCalls, claimed: Sandbox, tools: Tools
) -> None:
    """ripgrep walks by path, and its complaint is longer than what is kept of all."""
    top = claimed.workspace / "deep"
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=at)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)
    why = "paths that are too long, or too many to be named, were not searched"
    lines, found = files.grep("x", path="deep")
    assert (lines, list(found.warnings)) == ([], [why])
    failed = tools.call("grep", pattern="x", path="deep")
    assert (failed.is_error, failed.content[0].text) == (True, f"grep: rg failed: {why}")
    (top / "found").write_text("x\n")
    told = tools.text("grep", pattern="x", path="deep")
    assert told == f"{top}/found:1:x\n[some files were not searched: {why}]"
    files.remove("deep", recursive=True)


def test_a_pattern_that_looks_like_an_option_is_a_pattern(
    files: FileCalls, claimed: Sandbox
) -> None:
    (claimed.workspace / "option").write_text("--pre=id\n")
    assert len(files.grep("--pre=id", path="option")[0]) == 1
    (claimed.workspace / "-dash").write_text("x\n")
    assert files.grep("x", path="-dash")[0] == [f"{claimed.workspace}/-dash:1:x"]


def test_too_many_matches_end_the_search(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "many.txt").write_text("x\n" * 100_000)
    lines, summary = files.grep("x", path="many.txt", max_matches=7)
    assert len(lines) == 7
    assert (summary.matches, summary.truncated) == (7, True)
    (claimed.workspace / "seven.txt").write_text("x\n" * 7)
    assert files.grep("x", path="seven.txt", max_matches=7)[1].truncated is False


def test_long_lines_are_cut_and_huge_ones_left_out(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "long.txt").write_text("x" * 100_000 + "\n")
    (line,), summary = files.grep("x", path="long.txt")
    assert line == f"{claimed.workspace}/long.txt:1:" + "x" * 65_536
    assert list(summary.warnings) == ["1 lines were cut to 65536 characters"]
    (claimed.workspace / "huge.txt").write_text("x" * 9_000_000 + "\nx\n")
    lines, summary = files.grep("^x", path="huge.txt")
    assert lines == [f"{claimed.workspace}/huge.txt:2:x"]
    assert list(summary.warnings) == ["1 lines were too long to be shown"]


def test_what_cannot_be_searched_is_told(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "broken").mkdir()
    (claimed.workspace / "broken" / "ok").write_text("x\n")
    os.mkfifo(claimed.workspace / "broken" / "pipe")
    lines, _ = files.grep("x", path="broken")
    assert len(lines) == 1, "a FIFO does not stop the search"


def test_a_search_that_takes_too_long_ends(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "late.txt").write_text("word " * 200_000 + "\n")
    request = exec_pb2.GrepRequest(pattern="word", path="late.txt", include_ignored=True)
    request.timeout.FromNanoseconds(1)
    *_, last = files.stub.Grep(request, timeout=60)
    assert last.summary.truncated
    assert list(last.summary.warnings) == ["the search ended after 1e-09 s"]


def test_a_caller_that_goes_away_ends_the_search(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "away.txt").write_text("some words\n" * 2_000_000)
    request = exec_pb2.GrepRequest(pattern="words", path="away.txt", max_matches=100_000)
    call = files.stub.Grep(request, timeout=60)
    next(call)
    call.cancel()
    marker = os.fsencode(str(claimed.workspace))
    eventually(lambda: not searching(marker))


def searching(marker: bytes) -> bool:
    """Whether a ripgrep of this workspace's server runs."""
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                words = file.read().split(b"\0")
            link = os.fsencode(os.readlink(f"/proc/{pid}/cwd"))  # noqa: PTH115
        except OSError:
            continue
        if words[0] == b"rg" and link.startswith(marker):
            return True
    return False


def test_only_so_many_searches_at_once(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "slow.txt").write_text("some words\n" * 1_000_000)
    request = exec_pb2.GrepRequest(pattern="words", path="slow.txt", max_matches=100_000)
    calls = [files.stub.Grep(request, timeout=60) for _ in range(8)]
    for each in calls:
        next(each)
    with refused(STATUS.RESOURCE_EXHAUSTED, reason="TOO_MANY_SEARCHES"):
        next(files.stub.Grep(request, timeout=60))
    for each in calls:
        each.cancel()
    begun = time.monotonic()

    def again() -> bool:
        try:
            return len(files.grep("words", path="slow.txt", max_matches=1)[0]) == 1
        except grpc.RpcError:
            assert time.monotonic() - begun < 20
            return False

    eventually(again)
