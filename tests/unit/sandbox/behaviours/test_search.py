"""Behaviours 38 to 48: glob and grep."""

import os
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from support.file_calls import found_by_ripgrep
from support.reference_toolset import Answer, Both
from support.sandbox_server import Tools, sandbox

HIDDEN = "[3 more matches, older than these]"


def tree(root: Path) -> None:
    """Files whose times tell their order: the later in this list the newer."""
    for number, name in enumerate(
        ("a.txt", "b.py", "dir/c.py", "dir/sub/d.py", ".hidden.py", "dir/sub/e.txt", "z.py")
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} alpha\n")
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))


def test_row_38_what_glob_refuses_and_does_not_find(both: Both) -> None:
    both.make(tree)
    absolute = "absolute pattern not permitted; pass a relative pattern (and optionally path)"
    both.fails(f"glob: {absolute}", "glob", pattern="/etc/*")
    for pattern in ("../*", "dir/../*", ".."):
        both.fails("glob: '..' is not permitted in the pattern", "glob", pattern=pattern)
    both.says("no matches", "glob", pattern="*.none")
    both.says("no matches", "glob", pattern="*", path="gone")
    both.says("no matches", "glob", pattern="*", path="a.txt")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*.py", ""),
        ("**/*.py", ""),
        ("dir/**/*.py", ""),
        ("*/*.py", ""),
        ("dir/c.py", ""),
        ("d?r/[cd].py", ""),
        ("**/[!abz]*.py", ""),
        ("**/sub/*", ""),
        ("**/*.py", "dir"),
        ("*.txt", "dir/sub"),
    ],
)
def test_row_39_newest_first(both: Both, pattern: str, path: str) -> None:
    both.make(tree)
    given = {"pattern": pattern, "path": path} if path else {"pattern": pattern}
    assert not both.same("glob", **given).text.startswith("no matches")


def test_row_40_what_is_left_out_is_counted(both: Both) -> None:
    def build(root: Path) -> None:
        for number in range(203):
            path = root / f"{number:03}"
            path.touch()
            os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))

    both.make(build)
    theirs, ours = both.theirs("glob", pattern="*"), both.ours("glob", pattern="*")
    assert len(theirs.text.splitlines()) == 200
    assert ours.text == f"{theirs.text}\n{HIDDEN}"


@pytest.mark.parametrize(
    ("pattern", "found", "theirs"),
    [
        ("dir/*.{py,txt}", ["dir/c.py"], Answer("no matches", False)),
        ("{a,b}.*", ["a.txt", "b.py"], Answer("no matches", False)),
        (
            "dir/**",
            ["dir", "dir/c.py", "dir/sub", "dir/sub/d.py", "dir/sub/e.txt"],
            None,
        ),
        (
            "**.txt",
            ["a.txt"],
            Answer("glob: Invalid pattern: '**' can only be an entire path component", True),
        ),
    ],
)
def test_row_41_patterns_are_doublestar(
    both: Both, pattern: str, found: list[str], theirs: Answer | None
) -> None:
    both.make(tree)
    ours = both.ours("glob", pattern=pattern)
    assert sorted(ours.text.splitlines()) == [f"{{w}}/{name}" for name in found]
    if theirs is not None:
        assert both.theirs("glob", pattern=pattern) == theirs
    else:
        assert both.theirs("glob", pattern=pattern) != ours


def test_row_42_links_are_followed_inside_only(both: Both) -> None:
    both.make(tree)

    def build(root: Path) -> None:
        (root / "outside").symlink_to("/etc")
        (root / "passwd.py").symlink_to("/etc/passwd")
        (root / "within").symlink_to("dir")
        (root / "dir" / "up").symlink_to("..")
        (root / "dir" / "sibling.py").symlink_to("../b.py")

    both.make(build)
    for pattern, path in [
        ("outside/*", ""),
        ("*/passwd", ""),
        ("passwd.py", ""),
        ("within/c.py", ""),
        ("within/*.py", ""),
        ("within/**/*.txt", ""),
        ("*/sub/d.py", ""),
        ("**/c.py", ""),
        ("**/up/b.py", ""),
        ("dir/up/dir/up/b.py", ""),
        ("*/*/*/*/b.py", ""),
        ("sibling.py", "dir"),
        ("up/*", "dir"),
    ]:
        given = {"pattern": pattern, "path": path} if path else {"pattern": pattern}
        theirs, ours = both.theirs("glob", **given), both.ours("glob", **given)
        # Names of one file have one time, and the reference leaves their order open.
        assert sorted(ours.text.split()) == sorted(theirs.text.split()), pattern


def test_row_43_matches_of_grep(both: Both) -> None:
    both.make(tree)
    both.says("{w}/dir/c.py:1:dir/c.py alpha\n", "grep", pattern="^dir/c")
    both.says("{w}/z.py:1:z.py alpha\n", "grep", pattern=r"\bz\.py\s+al")
    both.says("{w}/dir/sub/d.py:1:dir/sub/d.py alpha\n", "grep", pattern="/d.py", path="dir/sub")
    both.says("no matches", "grep", pattern="no-such-word")
    both.says("no matches", "grep", pattern="-v")


def test_row_44_every_match_names_its_file_and_the_order_is_fixed(both: Both) -> None:
    both.make(tree)
    theirs = both.theirs("grep", pattern="alpha", path="dir/c.py")
    assert theirs == Answer("1:dir/c.py alpha\n", False)
    ours = both.ours("grep", pattern="alpha", path="dir/c.py")
    assert ours == Answer("{w}/dir/c.py:1:dir/c.py alpha\n", False)
    lines = both.ours("grep", pattern="alpha").text.splitlines()
    paths = [line.split(":")[0] for line in lines]
    assert len(paths) == 6
    assert paths == sorted(paths)


def test_row_45_there_is_one_engine(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(root: Path) -> None:
        (root / "repo" / ".git").mkdir(parents=True)
        (root / "repo" / ".gitignore").write_text("ignored\n")
        for name in ("ignored", ".hidden", "seen"):
            (root / "repo" / name).write_text("needle\n")

    both.make(build)
    both.says("{w}/repo/seen:1:needle\n", "grep", pattern="needle", path="repo")
    monkeypatch.setenv("PATH", "/nowhere")
    fallback = both.theirs("grep", pattern="needle", path="repo").text
    assert "ignored" in fallback
    assert ".hidden" in fallback
    both.write("utf16.txt", "needle\n".encode("utf-16"))
    ours = both.ours("grep", pattern="needle", path="utf16.txt")
    assert ours == Answer("{w}/utf16.txt:1:needle\n", False)
    assert both.theirs("grep", pattern="needle", path="utf16.txt").text == "no matches"


def test_row_46_one_file_that_cannot_be_read_spoils_nothing(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever runs the tests may be allowed to read everything: an engine that meets such a file.
    engine = tmp_path / "bin" / "rg"
    engine.parent.mkdir()
    found, file = tmp_path / "found", tmp_path / "server" / "workspace" / "f"
    engine.write_text(f"#!/bin/sh\ncat {found}\necho g: Permission denied >&2\nexit 2\n")
    engine.chmod(0o755)
    path = f"{engine.parent}:{os.environ['PATH']}"
    with sandbox(tmp_path / "server", {"env": {"PATH": path}}) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            file.write_text("x\n")
            found.write_text(found_by_ripgrep(file, "x\n"))
            ours = Tools(channel).call("grep", pattern="x")
    words = f"{file}:1:x\n[some files were not searched: g: Permission denied]"
    assert (ours.content[0].text, ours.is_error) == (words, False)
    with monkeypatch.context() as changed:
        changed.setenv("PATH", path)
        theirs = both.theirs("grep", pattern="x")
    assert theirs == Answer("grep: rg failed: g: Permission denied\n", True)
    for given, words in [
        ({"pattern": "x", "path": "gone"}, "{w}/gone: "),
        ({"pattern": "("}, "regex parse error"),
    ]:
        for answer in (both.ours("grep", **given), both.theirs("grep", **given)):
            assert answer.is_error
            assert answer.text.startswith(f"grep: rg failed: {words}")


@pytest.mark.parametrize("line", ["match", "mätch", "𝄞 match"])
def test_row_47_grep_is_cut_and_says_so(both: Both, line: str) -> None:
    both.write("wide.txt", f"{line}\n".encode() * 40_000)
    given = {"pattern": "m.tch"}
    theirs, ours = both.theirs("grep", **given), both.ours("grep", **given)
    (*our_lines, our_mark), (*their_lines, their_mark) = (
        ours.text.splitlines(),
        theirs.text.splitlines(),
    )
    assert our_mark == their_mark == "[output truncated at 102400 bytes]"
    # The name of the workspace is part of the output, and so of where it is cut.
    whole = min(len(our_lines), len(their_lines)) - 1
    assert whole > 500
    assert our_lines[:whole] == their_lines[:whole]
    theirs_raw = both.reference.call("grep", **given).text
    ours_raw = both.result("grep", **given).content[0].text
    assert len(theirs_raw) == len(ours_raw)


def test_row_48_no_pattern_takes_for_ever(both: Both) -> None:
    both.write("f", b"a" * 5000 + b"!\n")
    ours = both.ours("grep", pattern="(a+)+$")
    assert ours == Answer("no matches", False)
    look = both.ours("grep", pattern="(?=a)")
    assert "look-around" in look.text
