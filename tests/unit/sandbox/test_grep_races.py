"""grep and Files.Grep while what is searched is swapped for links that lead outside."""

import codecs
import json
import os
import secrets
import selectors
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import greps
from cloister_sandbox.matches import Binary, Line, Matches
from cloister_sandbox.paths import Roots
from cloister_sandbox.ripgrep import Search
from support.descriptors import descriptors
from support.false_ripgrep import with_ripgrep
from support.file_calls import FileCalls, found_by_ripgrep
from support.sandbox_server import Sandbox, Tools
from support.swaps import swapping

pytestmark = pytest.mark.long

SECRET = "what is outside"
LEFT_OUT = "1 lines were left out: their files changed during the search"


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[FileCalls]:
    with claimed.worker() as channel:
        yield FileCalls(channel)


def test_a_search_never_prints_what_a_swapped_link_leads_to(
    files: FileCalls, tools: Tools, claimed: Sandbox
) -> None:
    outside = claimed.workspace.parent / "grep-outside"
    (outside / "only-there").mkdir(parents=True)
    race = claimed.workspace / "grep-race"
    (race / "d").mkdir(parents=True)
    (race / "bait").symlink_to(outside)
    for number in range(20):
        (outside / f"f{number}").write_text(f"{SECRET}\n")
        (race / "d" / f"f{number}").write_text("outside\n")
    (outside / "only-there" / "hidden-name").write_text("outside\n")
    printed = []
    with swapping(race / "d", race / "bait"):
        for _ in range(100 if "SOAK" in os.environ else 40):
            lines, summary = files.grep("outside", path="grep-race")
            printed += lines
            printed += summary.warnings
            printed.append(tools.call("grep", pattern="outside", path="grep-race").content[0].text)
    inside = "\n".join(printed)
    assert SECRET not in inside
    assert "only-there" not in inside
    assert f"{race}/d/f0:1:outside" in inside


@pytest.mark.parametrize("changed", ["link", "text", "gone", "directory"])
def test_lines_that_a_file_does_not_hold_are_left_out_and_counted(
    tmp_path: Path, changed: str
) -> None:
    found = tmp_path / "found"
    outside = tmp_path / "outside"
    outside.write_text(SECRET)
    with with_ripgrep(tmp_path, f"cat {found}\n") as server:
        (server.workspace / "good").write_text("x\n")
        bad = server.workspace / "bad"
        ways: dict[str, Callable[[], object]] = {
            "link": lambda: bad.symlink_to(outside),
            "text": lambda: bad.write_text("what is within"),
            "gone": lambda: None,
            "directory": bad.mkdir,
        }
        ways[changed]()
        found.write_text(
            found_by_ripgrep(bad, SECRET) + found_by_ripgrep(server.workspace / "good", "x\n")
        )
        with server.worker() as channel:
            text = Tools(channel).call("grep", pattern="x").content[0].text
            lines, summary = FileCalls(channel).grep("x")
    assert text == f"{server.workspace}/good:1:x\n[{LEFT_OUT}]"
    assert lines == [f"{server.workspace}/good:1:x"]
    assert (summary.matches, summary.files, list(summary.warnings)) == (1, 1, [LEFT_OUT])


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"a needle\r\nb\nneedle", ["1:a needle\r", "3:needle"]),
        (b"needle \xff\n", ["1:needle \ufffd"]),
        (codecs.BOM_UTF8 + b"x\nneedle\n", ["2:needle"]),
        (
            codecs.BOM_UTF16_LE + "x\nneedle ü\r\n𝄞 needle".encode("utf-16-le"),
            ["2:needle ü\r", "3:𝄞 needle"],
        ),
        (codecs.BOM_UTF16_BE + "x\nneedle".encode("utf-16-be"), ["2:needle"]),
        (
            codecs.BOM_UTF16_LE + "needle ".encode("utf-16-le") + b"\0\xd8x\0\n\0q",
            ["1:needle \ufffdx"],
        ),
        (codecs.BOM_UTF16_LE + ("ü" * 200_000 + "\nneedle").encode("utf-16-le"), ["2:needle"]),
        (b"y\n" * 300_000 + b"needle\n", ["300001:needle"]),
    ],
    ids=["crlf", "latin", "utf-8", "utf-16-le", "utf-16-be", "broken", "long", "far"],
)
def test_what_stays_as_it_is_is_confirmed(
    files: FileCalls, tools: Tools, claimed: Sandbox, data: bytes, found: list[str]
) -> None:
    path = claimed.workspace / "confirmed" / "file"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    for where in ("confirmed", "confirmed/file"):
        lines, summary = files.grep("needle", path=where)
        assert lines == [f"{path}:{each}" for each in found]
        assert list(summary.warnings) == []
        text = tools.text("grep", pattern="needle", path=where)
        assert text == "".join(f"{path}:{each}\n" for each in found)


def test_lines_around_a_match_in_utf_16_are_confirmed(files: FileCalls, claimed: Sandbox) -> None:
    path = claimed.workspace / "around"
    path.write_bytes(codecs.BOM_UTF16_LE + "a\nneedle\nb\nc\nneedle\n".encode("utf-16-le"))
    lines, summary = files.grep("needle", path="around", context_lines=1)
    signs = ["-1-a", ":2:needle", "-3-b", "-4-c", ":5:needle"]
    assert lines == [f"{path}{each}" for each in signs]
    assert list(summary.warnings) == []


def test_a_binary_file_is_told_as_ripgrep_does(tools: Tools, claimed: Sandbox) -> None:
    path = claimed.workspace / "binary" / "file"
    path.parent.mkdir()
    path.write_bytes(b"needle a\nneedle\0b\nneedle c\n")
    notice = f'{path}: binary file matches (found "\\0" byte around offset 15)\n'
    assert tools.text("grep", pattern="needle", path="binary/file").endswith(notice)
    path.write_bytes(b"needle\n" * 20_000 + b"\0\nneedle\n")
    text = tools.text("grep", pattern="needle$", path="binary")
    assert text.endswith("[output truncated at 102400 bytes]")
    path.write_bytes(b"needle\n" + b"x\n" * 100_000 + b"\0\nneedle\n")
    assert tools.text("grep", pattern="needle$", path="binary") == (
        f"{path}:1:needle\n{path}: WARNING: stopped searching binary file after match "
        '(found "\\0" byte around offset 200007)\n'
    )


def test_a_complaint_names_only_what_may_be_seen(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "a: b").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "name").touch()
    (root / "link").symlink_to(tmp_path / "outside")
    roots = Roots(root, (), ())
    with Matches(roots, str(root), str(root), lambda: False) as matches:
        said = [
            "regex parse error: x",
            f"rg: {root}/a: b: Permission denied",
            "./d: Permission denied",
            f"{root}/link/name: Permission denied",
            "./link/name: Permission denied",
            "./gone: Permission denied",
        ]
        assert matches.complaints("\n".join(said), more=False) == said[:3]
        missing = f"{root}: No such file or directory"
        assert matches.complaints(missing, more=False) == [missing]


FORGED = [
    "{",
    "1",
    "[]",
    "[" * 100_000,
    '{"type": {}, "data": {}}',
    '{"type": "begin"}',
    '{"type": "begin", "data": {"path": 1}}',
    '{"type": "begin", "data": {"path": {"text": "a\\u0000b"}}}',
    '{"type": "begin", "data": {"path": {"text": "\\ud800"}}}',
    '{"type": "begin", "data": {"path": {"bytes": "!"}}}',
    '{"type": "end", "data": {"path": {"text": "f"}, "binary_offset": 1e999}}',
    *(
        f'{{"type": "match", "data": {{"path": {{"text": "f"}}, "lines": {{"text": "a"}}, '
        f'"line_number": {number}, "absolute_offset": {offset}}}}}'
        for number, offset in ((2**64, 0), (-1, 0), (1, 2**64), (1, -1), (1, '"0"'), ("[1]", 0))
    ),
    f'{{"type": "match", "data": {"9" * 5000}}}',
]


def test_what_a_tool_writes_into_ripgreps_pipe_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("a\n")
    roots = Roots(tmp_path, (), ())
    for each in FORGED:
        with Matches(roots, str(tmp_path), str(tmp_path), lambda: False) as matches:
            assert not list(matches.feed(f"{each}\n".encode())), each
            (found,) = matches.feed(found_by_ripgrep(path, "a\n").encode())
            assert isinstance(found, Line)


def test_a_file_that_cannot_be_read_keeps_no_descriptor(tmp_path: Path) -> None:
    """What a tool writes into ripgrep's pipe names as many of them as it likes."""
    unreadable = f"/proc/{os.getpid()}/mem"
    roots = Roots(tmp_path, (), (), frozenset({unreadable}))
    begin = json.dumps({"type": "begin", "data": {"path": {"text": unreadable}}}).encode()

    with Matches(roots, "/", "/", lambda: False) as matches:
        assert not list(matches.feed(begin + b"\n"))
        before = descriptors()
        assert not list(matches.feed((begin + b"\n") * 50))
        assert descriptors() <= before


@pytest.mark.parametrize(
    "content",
    [b"x" * 200_000, b'"\\\t\r' * 60_000, b"\x80\xff" * 60_000, "ä€😀".encode() * 20_000],
    ids=["plain", "escaped", "bytes", "characters"],
)
def test_a_long_line_is_found(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / '"f\\'
    path.write_bytes(content + b"needle\n")
    command = ["rg", "--no-config", "--json", "--text", "-e", "needle", "--", str(path)]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    with Matches(Roots(tmp_path, (), ()), str(path), str(path), lambda: False) as matches:
        (found,) = matches.feed(output)
        assert isinstance(found, Line)
        assert (found.text, found.number, found.offset) == (content + b"needle\n", 1, 0)
        assert matches.complete


LONG = {
    "lists": "[[" + "[]," * 100_000 + "[]]]",
    "text-and-more": '{"text":"a","b":[' + "[]," * 100_000 + '[]],"c":"d"}',
    "no-string": '{"text":"' + "a" * 100_000 + '\t"}',
    "no-bytes": '{"bytes":"' + "*" * 100_000 + '"}',
}


@pytest.mark.parametrize("lines", LONG.values(), ids=LONG.keys())
def test_what_is_long_and_no_line_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    """A tool can put it into the pipe; read as JSON it is a million objects."""
    event = f'{{"type":"match","data":{{"path":{{"text":"f"}},"lines":{lines}'
    event += ',"line_number":1,"absolute_offset":0,"submatches":[]}}\n'
    read: list[bytes] = []
    loads = json.loads

    def noted(text: bytes) -> object:
        read.append(text)
        return loads(text)

    monkeypatch.setattr("cloister_sandbox.matches.json.loads", noted)
    with Matches(Roots(tmp_path, (), ()), str(tmp_path), str(tmp_path), lambda: False) as matches:
        assert not list(matches.feed(event.encode()))
        assert matches.unconfirmed == 0
    assert all(len(each) < 100 or each.startswith(b'"') for each in read)


def test_a_line_is_told_of_the_file_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a\n")
    roots = Roots(tmp_path, (), ())
    begin, line, *_ = found_by_ripgrep(tmp_path / "f", "a\n").splitlines(keepends=True)
    other = line.replace(str(tmp_path / "f"), str(tmp_path / "other"))
    assert other != line
    with Matches(roots, str(tmp_path), str(tmp_path), lambda: False) as matches:
        assert not list(matches.feed((begin + other).encode()))
        assert matches.unconfirmed == 1


def test_a_search_that_finds_nothing_lets_others_have_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ripgrep prints without end may hold no line that may be shown."""

    class Endless:
        complaint = ""
        complained_more = False
        ended = ""
        late = False

        def output(self, _: object) -> Iterator[bytes]:
            while True:
                yield b"{}\n"

    monkeypatch.setattr(greps, "_start", lambda *_: Endless())
    request = exec_pb2.GrepRequest(pattern="x")
    roots = Roots(tmp_path, (), ())
    events = greps.grep(roots, request, str(tmp_path), {}, 10, 10.0, lambda: False)
    assert [next(events) for _ in range(3)] == [None] * 3
    events.close()  # type: ignore[attr-defined]


def test_what_ripgrep_leaves_behind_ends_with_the_next_that_ends(tmp_path: Path) -> None:
    """Tools may have put another program in its place."""
    left = f"sleep 600.{secrets.randbelow(10**9)}"
    # It has its number by then.
    leaves = f"setsid --fork env -i {left} >/dev/null 2>&1 </dev/null"
    with with_ripgrep(tmp_path, f"sleep 0.5\n{leaves}\n") as server, server.worker() as channel:
        tools = Tools(channel)
        assert tools.call("grep", pattern="x").content[0].text.startswith("no matches\n")
        assert tools.bash(f"pgrep -fx '{left}' | wc -l") == "1"
        tools.bash("true", context_id="ends")
        request = exec_pb2.CloseContextRequest(context_id="ends")
        tools.stub.CloseContext(request, timeout=40)
        assert tools.bash(f"pgrep -fx '{left}' | wc -l") == "0"


def test_the_number_of_a_search_that_ended_is_not_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads may take minutes, and who has the number by then is somebody else."""
    (tmp_path / "f").write_text("needle\n")
    signalled = []
    monkeypatch.setattr("cloister_sandbox.ripgrep.os.kill", lambda *given: signalled.append(given))
    search = Search(["--json", "-e", "needle", "."], str(tmp_path), dict(os.environ), 30)
    output = search.output(lambda: False)
    assert next(output)
    os.waitpid(search._pid, 0)
    output.close()
    assert not signalled


def test_a_search_that_is_over_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le"))
    output = found_by_ripgrep(path, "a\n").encode()
    roots = Roots(tmp_path, (), ())
    for late, count in (([], 1), ([True], 0)):
        with Matches(roots, str(tmp_path), str(tmp_path), partial(bool, late)) as matches:
            found: list[Line | Binary] = list(matches.feed(output))
        assert len(found) == count
        assert matches.unconfirmed == 1 - count


def test_a_search_whose_output_a_tool_takes_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any tool can open the pipe and be quicker than who was told that something is there."""

    class Hasty(selectors.PollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            pipes = [each for each in self.get_map().values() if each.fileobj is not search._life]
            return [(each, selectors.EVENT_READ) for each in pipes]

    rg = tmp_path / "rg"
    rg.write_text("#!/bin/sh\nexec sleep 300\n")
    rg.chmod(0o755)
    monkeypatch.setattr(selectors, "PollSelector", Hasty)
    search = Search([], str(tmp_path), {"PATH": f"{tmp_path}:/usr/bin:/bin"}, 0.3)
    assert list(search.output(lambda: False)) == []
    assert search.ended == "late"
    os.waitpid(search._pid, 0)


HOLDS = """
import os, sys, time
kept = []
print("on", flush=True)
while len(kept) < 2:
    for each in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{each}/stat") as stat:
                # Another test's search may have no reader any more: who opens that would wait.
                _, name, _, parent, *_ = stat.read().split()
                if (name, parent) == ("(rg)", "SERVER") and not kept:
                    kept = [os.open(f"/proc/{each}/fd/{fd}", os.O_WRONLY) for fd in (1, 2)]
        except (OSError, ValueError):
            kept.clear()
open("kept", "w").close()
time.sleep(600)
"""
STAYS = 'until [ -e kept ]; do sleep 0.01; done\nexec {rg} "$@"\n'


def test_who_keeps_a_searchs_pipes_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Any tool can open them, and its end would otherwise come with the search's time."""
    with with_ripgrep(tmp_path, STAYS.format(rg=shutil.which("rg"))) as server:
        (server.workspace / "f").write_text("needle\n")
        with server.worker() as channel:
            tools = Tools(channel)
            tools.call(
                "write",
                file_path="holds.py",
                content=HOLDS.replace("SERVER", str(server.process.pid)),
            )
            tools.bash("mkfifo on; python3 holds.py >on 2>&1 & read < on")
            found = tools.call("grep", pattern="needle", path="f")
            assert not found.is_error
            assert found.content[0].text == f"{server.workspace}/f:1:needle\n"


def test_a_search_that_is_killed_is_told_from_one_that_found_nothing(tmp_path: Path) -> None:
    with with_ripgrep(tmp_path, "kill -9 $$\n") as server, server.worker() as channel:
        said = Tools(channel).call("grep", pattern="x").content[0].text
        assert said == "no matches\n[something ended the search: this is what it had found by then]"
        _, summary = FileCalls(channel).grep("x")
        assert summary.truncated
        assert list(summary.warnings) == [
            "something ended the search: this is what it had found by then"
        ]
