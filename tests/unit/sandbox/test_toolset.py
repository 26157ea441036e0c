"""The tools, behaviour by behaviour.

The ids begin with the number of the behaviour in the catalogue that was made by running the public
reference implementation of agent_toolset_20260401; where ours is meant to be better, the row says
what ours does. Behaviours of the shell are in test_shell.py.
"""

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from cloister_api.exec.v1 import exec_pb2
from support.file_calls import found_by_ripgrep
from support.sandbox_server import Sandbox, Tools, sandbox

OUTSIDE = "is outside the session's working directory and its other permitted directories"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
BIG = "big.txt is 480000 bytes, exceeds 262144-byte limit."
LONE = (
    "read: line 1 of long.txt alone exceeds 262144-byte limit. The read tool cannot return part of "
    "a line, so view_range cannot narrow this further."
)


@pytest.fixture(scope="module", autouse=True)
def tree(claimed: Sandbox) -> None:
    """The files that the rows speak of."""
    root = claimed.workspace
    (root / "a.txt").write_bytes(b"l1\nl2\nl3\n")
    (root / "crlf.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (root / "empty").touch()
    (root / "big.txt").write_bytes(b"x" * 79 + b"\n" + (b"y" * 79 + b"\n") * 5999)
    (root / "long.txt").write_bytes(b"z" * 300_000 + b"\nshort\n")
    (root / "bin").write_bytes(b"\xff\xfe\x00")
    (root / "i.png").write_bytes(PNG)
    (root / "text.PNG").write_text("not a picture\n")
    (root / "huge.png").write_bytes(PNG.ljust(3_932_161, b"\0"))
    (root / "d.pdf").write_bytes(b"%PDF-1.4\n")
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "one.py").write_text("alpha = 1\n")
    (root / "dir" / "sub" / "two.py").write_text("beta = 1\nalpha = 2\n")
    os.mkfifo(root / "fifo")
    (root / "loopa").symlink_to("loopb")
    (root / "loopb").symlink_to("loopa")
    (root / "out").symlink_to("/etc")
    (root / "leaf").symlink_to("/etc/passwd")
    (root / "dangling-in").symlink_to("made-through-link.txt")
    (root / "dangling-out").symlink_to("/nowhere/x")
    for number, name in enumerate(("dir/one.py", "dir/sub/two.py")):
        os.utime(root / name, (1_700_000_000 + number, 1_700_000_000 + number))


ERRORS: list[tuple[str, str, dict[str, Any], str]] = [
    ("4-missing", "read", {}, "read: argument file_path is missing"),
    ("4-unknown", "read", {"file_path": "a", "x": 1}, "read: unknown argument x; it takes "),
    ("4-type", "read", {"file_path": 1}, "read: argument file_path must be a string, not a number"),
    (
        "4-list",
        "write",
        {"file_path": [], "content": ""},
        "write: argument file_path must be a str",
    ),
    ("5-fraction", "bash", {"command": ":", "timeout_ms": 1.5}, "bash: argument timeout_ms"),
    ("5-nan", "bash", {"command": ":", "timeout_ms": float("nan")}, "bash: argument timeout_ms"),
    ("5-inf", "bash", {"command": ":", "timeout_ms": float("inf")}, "bash: argument timeout_ms"),
    ("12-dots", "read", {"file_path": "../x"}, f"read: path '../x' {OUTSIDE}"),
    ("12-absolute", "read", {"file_path": "/etc/passwd"}, f"read: path '/etc/passwd' {OUTSIDE}"),
    ("12-link", "read", {"file_path": "leaf"}, f"read: path 'leaf' {OUTSIDE}"),
    (
        "12-through-link",
        "edit",
        {"file_path": "out/passwd", "old_string": "", "new_string": ""},
        f"edit: path 'out/passwd' {OUTSIDE}",
    ),
    ("12-write", "write", {"file_path": "out/x", "content": ""}, f"write: path 'out/x' {OUTSIDE}"),
    ("12-grep", "grep", {"pattern": "root", "path": "out"}, f"grep: path 'out' {OUTSIDE}"),
    ("12-glob", "glob", {"pattern": "*", "path": "/"}, f"glob: path '/' {OUTSIDE}"),
    ("12-proc", "read", {"file_path": "/proc/self/environ"}, "read: path '/proc/"),
    (
        "13-dangling-out",
        "write",
        {"file_path": "dangling-out", "content": ""},
        f"write: path 'dangling-out' {OUTSIDE}",
    ),
    (
        "13-loop",
        "read",
        {"file_path": "loopa"},
        "read: path 'loopa': too many levels of symbolic links",
    ),
    ("15-missing", "read", {"file_path": "gone"}, "read: gone: no such file or directory"),
    ("15-nul", "read", {"file_path": "a\0b"}, "read: embedded null byte"),
    ("15-not-dir", "read", {"file_path": "a.txt/x"}, "read: a.txt/x: not a directory"),
    ("15-empty-path", "read", {"file_path": ""}, "read: : not a regular file"),
    ("15-tilde", "read", {"file_path": "~/x"}, "read: ~/x: no such file or directory"),
    (
        "20-one",
        "read",
        {"file_path": "a.txt", "view_range": [1]},
        "read: view_range must be [start_line, end_line]",
    ),
    (
        "20-three",
        "read",
        {"file_path": "a.txt", "view_range": [1, 2, 3]},
        "read: view_range must be [start_line, end_line]",
    ),
    (
        "21",
        "read",
        {"file_path": "big.txt"},
        (
            f"read: {BIG} Use the view_range parameter to read "
            "specific line ranges, e.g. view_range: [1, 500]."
        ),
    ),
    (
        "22-range",
        "read",
        {"file_path": "big.txt", "view_range": [1, -1]},
        (
            "read: view_range [1, -1] of big.txt exceeds 262144-byte limit. "
            "Narrow the view_range to read a smaller portion."
        ),
    ),
    ("22-line", "read", {"file_path": "long.txt", "view_range": [1, 1]}, LONE),
    ("23-directory", "read", {"file_path": "dir"}, "read: dir: not a regular file"),
    ("23-fifo", "read", {"file_path": "fifo"}, "read: fifo: not a regular file"),
    (
        "24-range",
        "read",
        {"file_path": "i.png", "view_range": [1, 2]},
        "read: view_range is not supported for image/PDF files",
    ),
    (
        "25-image",
        "read",
        {"file_path": "huge.png"},
        ("read: huge.png is 3932161 bytes, exceeds 3932160-byte limit for image/PDF files."),
    ),
    (
        "27",
        "read",
        {"file_path": "bin"},
        (
            "read: bin: not valid UTF-8 text (binary files are only "
            "supported for image/PDF extensions)"
        ),
    ),
    ("31", "write", {"file_path": "fifo", "content": "x"}, "write: fifo: not a regular file"),
    ("33-directory", "write", {"file_path": "dir", "content": ""}, "write: dir: is a directory"),
    (
        "33-parent",
        "write",
        {"file_path": "a.txt/x", "content": ""},
        "write: a.txt/x: file already exists",
    ),
    (
        "35-none",
        "edit",
        {"file_path": "a.txt", "old_string": "L1", "new_string": ""},
        "edit: old_string not found in a.txt",
    ),
    (
        "35-many",
        "edit",
        {"file_path": "a.txt", "old_string": "l", "new_string": ""},
        "edit: old_string appears 3 times in a.txt (must be unique)",
    ),
    (
        "36-big",
        "edit",
        {"file_path": "big.txt", "old_string": "x", "new_string": ""},
        f"edit: {BIG} The edit tool loads the whole file and cannot modify a file this large.",
    ),
    (
        "36-binary",
        "edit",
        {"file_path": "bin", "old_string": "x", "new_string": ""},
        "edit: bin: not valid UTF-8 text (cannot edit binary files)",
    ),
    (
        "36-fifo",
        "edit",
        {"file_path": "fifo", "old_string": "x", "new_string": ""},
        "edit: fifo: not a regular file",
    ),
    (
        "37-crlf",
        "edit",
        {"file_path": "crlf.txt", "old_string": "one\ntwo", "new_string": ""},
        "edit: old_string not found in crlf.txt (the file's lines end in CRLF)",
    ),
    (
        "38-absolute",
        "glob",
        {"pattern": "/etc/*"},
        ("glob: absolute pattern not permitted; pass a relative pattern (and optionally path)"),
    ),
    ("38-dots", "glob", {"pattern": "../*"}, "glob: '..' is not permitted in the pattern"),
    ("46-regex", "grep", {"pattern": "("}, "grep: rg failed: "),
    ("46-missing", "grep", {"pattern": "x", "path": "gone"}, "grep: rg failed: "),
    ("46-nul", "grep", {"pattern": "a\0b"}, "grep: "),
    ("55-empty", "bash", {}, "bash: command is required"),
    (
        "56-negative",
        "bash",
        {"command": ":", "timeout_ms": -5},
        "bash: argument timeout_ms must not",
    ),
]


@pytest.mark.parametrize(
    ("tool", "given", "text"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS]
)
def test_failures(tools: Tools, tool: str, given: dict[str, Any], text: str) -> None:
    result = tools.call(tool, **given)
    assert result.is_error
    assert result.content[0].text.startswith(text)


SUCCESSES: list[tuple[str, str, dict[str, Any], str]] = [
    ("1-empty-file", "read", {"file_path": "empty"}, "(no output)"),
    ("1-silent-command", "bash", {"command": ":"}, "(no output)"),
    ("5-number-as-text", "read", {"file_path": "a.txt", "view_range": ["2", "2"]}, "l2"),
    ("10-relative", "read", {"file_path": "dir/one.py"}, "alpha = 1\n"),
    ("11-lexical", "read", {"file_path": "out/../a.txt"}, "l1\nl2\nl3\n"),
    ("11-missing", "read", {"file_path": "missing/../a.txt"}, "l1\nl2\nl3\n"),
    (
        "13-dangling-in",
        "write",
        {"file_path": "dangling-in", "content": "x"},
        "wrote 1 bytes to dangling-in",
    ),
    ("17", "read", {"file_path": "crlf.txt"}, "\ufeffone\r\ntwo\r\n"),
    ("18-inside", "read", {"file_path": "a.txt", "view_range": [1, 2]}, "l1\nl2"),
    ("18-to-end", "read", {"file_path": "a.txt", "view_range": [2, -1]}, "l2\nl3\n"),
    ("18-from-zero", "read", {"file_path": "a.txt", "view_range": [0, 1]}, "l1"),
    ("20-empty", "read", {"file_path": "a.txt", "view_range": []}, "l1\nl2\nl3\n"),
    ("22-after-long", "read", {"file_path": "long.txt", "view_range": [2, 2]}, "short"),
    ("26", "read", {"file_path": "text.PNG"}, "not a picture\n"),
    (
        "29-parents",
        "write",
        {"file_path": "new/deep/f", "content": "x"},
        "wrote 1 bytes to new/deep/f",
    ),
    ("30-bytes", "write", {"file_path": "u", "content": "héllo"}, "wrote 6 bytes to u"),
    ("38-none", "glob", {"pattern": "*.none"}, "no matches"),
    ("38-missing-root", "glob", {"pattern": "*", "path": "gone"}, "no matches"),
    ("38-file-root", "glob", {"pattern": "*", "path": "a.txt"}, "no matches"),
    ("39", "glob", {"pattern": "**/*.py"}, "{w}/dir/sub/two.py\n{w}/dir/one.py"),
    ("41-braces", "glob", {"pattern": "dir/{one,none}.{py,txt}"}, "{w}/dir/one.py"),
    ("41-stars", "glob", {"pattern": "**.py", "path": "dir"}, "{w}/dir/one.py"),
    ("42-outside", "glob", {"pattern": "le?f"}, "no matches"),
    ("42-not-entered", "glob", {"pattern": "out/passwd"}, "no matches"),
    (
        "43",
        "grep",
        {"pattern": "^alpha"},
        "{w}/dir/one.py:1:alpha = 1\n{w}/dir/sub/two.py:2:alpha = 2\n",
    ),
    ("43-none", "grep", {"pattern": "no-such-word-anywhere"}, "no matches"),
    (
        "44-one-file",
        "grep",
        {"pattern": "beta", "path": "dir/sub/two.py"},
        "{w}/dir/sub/two.py:1:beta = 1\n",
    ),
    ("43-dash", "grep", {"pattern": "-v"}, "no matches"),
    ("49-merged", "bash", {"command": "echo a; echo b >&2; tty"}, "a\nb\nnot a tty\n[exit code 1]"),
    ("53", "bash", {"command": "printf '  x\\n\\n'"}, "  x"),
    ("54", "bash", {"command": "grep x /dev/null"}, "[exit code 1]"),
    ("64", "bash", {"command": "printf '\\033[31mred\\033[0m \\377'"}, "red \ufffd"),
]


@pytest.mark.parametrize(
    ("tool", "given", "text"), [row[1:] for row in SUCCESSES], ids=[row[0] for row in SUCCESSES]
)
def test_answers(
    tools: Tools, claimed: Sandbox, tool: str, given: dict[str, Any], text: str
) -> None:
    assert tools.text(tool, **given) == text.replace("{w}", str(claimed.workspace))


@pytest.mark.parametrize(
    ("name", "kind", "media_type"),
    [("i.png", "image", "image/png"), ("d.pdf", "document", "application/pdf")],
)
def test_24_pictures_and_documents_come_as_bytes(
    tools: Tools, claimed: Sandbox, name: str, kind: str, media_type: str
) -> None:
    (block,) = tools.call("read", file_path=name).content
    assert block.WhichOneof("block") == kind
    blob = getattr(block, kind)
    assert (blob.media_type, blob.data) == (media_type, (claimed.workspace / name).read_bytes())


def test_29_write_keeps_mode_inode_and_hard_links(tools: Tools, claimed: Sandbox) -> None:
    path, link = claimed.workspace / "kept.sh", claimed.workspace / "link.sh"
    path.write_text("a long old text")
    path.chmod(0o750)
    os.link(path, link)
    tools.text("write", file_path="kept.sh", content="new")
    assert (link.read_text(), link.stat().st_mode & 0o777) == ("new", 0o750)


def test_35_edit_replaces_once_or_everywhere(tools: Tools, claimed: Sandbox) -> None:
    path = claimed.workspace / "e.txt"
    path.write_text("a b a")
    given = {"file_path": "e.txt", "old_string": "b", "new_string": "c"}
    assert tools.text("edit", **given) == "edited e.txt (1 replacement(s))"
    given = {"file_path": "e.txt", "old_string": "a", "new_string": "é", "replace_all": "true"}
    assert tools.text("edit", **given) == "edited e.txt (2 replacement(s))"
    assert path.read_text() == "é c é"


def test_an_edit_cannot_use_up_the_memory(tools: Tools, claimed: Sandbox) -> None:
    path = claimed.workspace / "bomb.txt"
    path.write_text("a" * 200_000)
    result = tools.call(
        "edit", file_path="bomb.txt", old_string="a", new_string="b" * 1000, replace_all=True
    )
    assert result.is_error
    assert "would exceed" in result.content[0].text
    assert path.read_text() == "a" * 200_000


def test_40_glob_says_how_many_it_left_out(tools: Tools, claimed: Sandbox) -> None:
    (claimed.workspace / "many").mkdir()
    for number in range(203):
        path = claimed.workspace / "many" / f"{number:03}.many"
        path.touch()
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
    lines = tools.text("glob", pattern="many/*").splitlines()
    assert lines[0].endswith("202.many")
    assert lines[199].endswith("003.many")
    assert lines[200:] == ["[3 more matches, older than these]"]


def test_45_grep_honours_ignore_files_and_skips_hidden_ones(tools: Tools, claimed: Sandbox) -> None:
    root = claimed.workspace / "repo"
    (root / ".git").mkdir(parents=True)
    (root / ".gitignore").write_text("ignored\n")
    for name in ("ignored", ".hidden", "seen"):
        (root / name).write_text("needle\n")
    assert tools.text("grep", pattern="needle", path="repo") == f"{root}/seen:1:needle\n"


def test_47_grep_is_cut_and_says_so(tools: Tools, claimed: Sandbox) -> None:
    (claimed.workspace / "wide.txt").write_text("match\n" * 40_000)
    text = tools.text("grep", pattern="match", path="wide.txt")
    assert text.endswith("\n[output truncated at 102400 bytes]")
    assert len(text.encode()) <= 102_400 + 50


@pytest.mark.parametrize(
    ("script", "text", "is_error"),
    [
        # More complaints than a pipe holds, before the first match.
        (
            "head -c 300000 /dev/zero | tr '\\0' e >&2; cat {found}",
            "{f}:1:x\n[some files were",
            False,
        ),
        ("cat {found}; exec sleep 4717", "{f}:1:x\ngrep: timed out after ", True),
    ],
    ids=["complaints", "slow"],
)
def test_a_search_cannot_hang(tmp_path: Path, script: str, text: str, is_error: bool) -> None:
    found, file = tmp_path / "found", tmp_path / "server" / "workspace" / "f"
    (tmp_path / "rg").write_text(f"#!/bin/sh\n{script.format(found=found)}\n")
    (tmp_path / "rg").chmod(0o755)
    recipe = {"env": {"PATH": f"{tmp_path}:{os.environ['PATH']}"}}
    with sandbox(tmp_path / "server", recipe) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            file.write_text("x\n")
            found.write_text(found_by_ripgrep(file, "x\n"))
            result = Tools(channel).call("grep", pattern="x", budget=5.0)
    begins = result.content[0].text.startswith(text.format(f=file))
    assert (begins, result.is_error) == (True, is_error)
