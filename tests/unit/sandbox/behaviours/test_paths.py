"""Behaviours 10 to 16: which paths the file tools take."""

import threading
from pathlib import Path

import pytest

from support.reference_toolset import Answer, Both

OUTSIDE = "is outside the session's working directory and its other permitted directories"


def test_row_10_paths_are_relative_to_the_workspace(both: Both) -> None:
    both.write("dir/f", b"inside\n")
    (both.extra / "g").write_text("extra\n")
    both.says("inside\n", "read", file_path="dir/f")
    both.says("extra\n", "read", file_path=str(both.extra / "g"))
    ours = both.ours("read", file_path=str(both.root / "dir" / "f"))
    theirs = both.theirs("read", file_path=str(both.reference.root / "dir" / "f"))
    assert ours == theirs == Answer("inside\n", False)


def test_row_11_dots_collapse_before_links_are_followed(both: Both) -> None:
    both.write("a.txt", b"here\n")
    both.make(lambda root: (root / "etc").symlink_to("/etc/ssl"))
    for path in ("etc/../a.txt", "missing/../a.txt", "./x/./..//a.txt", "a.txt/../a.txt"):
        both.says("here\n", "read", file_path=path)


def test_row_12_nothing_leads_outside(both: Both) -> None:
    both.make(lambda root: (root / "out").symlink_to("/etc"))
    both.make(lambda root: (root / "leaf").symlink_to("/etc/passwd"))
    both.make(lambda root: (root / "chain").symlink_to("leaf"))
    for path in (
        "../x",
        "/etc/passwd",
        "leaf",
        "chain",
        "out/passwd",
        "it's",
        "/proc/self/environ",
    ):
        given = f"/{path}" if path == "it's" else path
        both.fails(f"read: path {given!r} {OUTSIDE}", "read", file_path=given)
    both.fails(f"write: path 'out/x' {OUTSIDE}", "write", file_path="out/x", content="")
    edit = {"file_path": "leaf", "old_string": "root", "new_string": ""}
    both.fails(f"edit: path 'leaf' {OUTSIDE}", "edit", **edit)
    both.fails(f"grep: path 'out' {OUTSIDE}", "grep", pattern="root", path="out")
    both.fails(f"glob: path '/' {OUTSIDE}", "glob", pattern="*", path="/")


def test_row_13_links_that_dangle_or_loop(both: Both) -> None:
    both.make(lambda root: (root / "in").symlink_to("made/through"))
    both.make(lambda root: (root / "out").symlink_to("/nowhere/x"))
    both.make(lambda root: (root / "loopa").symlink_to("loopb"))
    both.make(lambda root: (root / "loopb").symlink_to("loopa"))
    both.says("wrote 1 bytes to in", "write", file_path="in", content="x")
    both.says("x", "read", file_path="made/through")
    both.fails(f"write: path 'out' {OUTSIDE}", "write", file_path="out", content="")
    loop = "path 'loopa': too many levels of symbolic links"
    both.fails(f"read: {loop}", "read", file_path="loopa")
    both.fails(f"write: {loop}", "write", file_path="loopa", content="")

    def chain(root: Path) -> None:
        for number in range(45):
            (root / f"l{number}").symlink_to(f"l{number + 1}")

    both.make(chain)
    both.fails(
        "write: path 'l0': too many levels of symbolic links", "write", file_path="l0", content=""
    )
    both.says("wrote 4 bytes to l30", "write", file_path="l30", content="end\n")
    both.says("end\n", "read", file_path="l0")


def test_row_14_what_was_checked_is_what_is_opened(both: Both) -> None:
    # While a thread swaps a directory for a link to a secret, no read shows the secret.
    secret = both.root.parent / "secret"
    secret.mkdir(exist_ok=True)
    (secret / "f").write_text("SECRET")
    both.write("kept/f", b"harmless")
    swap, stop = both.root / "swap", threading.Event()

    def swapping() -> None:
        while not stop.is_set():
            for target in ("kept", secret):
                made = both.root / "made"
                made.symlink_to(target)
                made.replace(swap)

    thread = threading.Thread(target=swapping)
    thread.start()
    try:
        texts = {both.ours("read", file_path="swap/f").text for _ in range(300)}
        both.ours("write", file_path="swap/f", content="changed")
    finally:
        stop.set()
        thread.join()
    assert "harmless" in texts
    assert not any("SECRET" in text for text in texts)
    assert (secret / "f").read_text() == "SECRET"


def test_row_15_the_words_for_what_went_wrong(both: Both) -> None:
    both.write("f", b"x")
    both.make(lambda root: (root / "dir").mkdir())
    for path, words in [
        ("gone", "gone: no such file or directory"),
        ("gone/deep", "gone/deep: no such file or directory"),
        ("f/x", "f/x: not a directory"),
        ("a\0b", "embedded null byte"),
        ("~/x", "~/x: no such file or directory"),
        ("", ": not a regular file"),
        (".", ".: not a regular file"),
        ("n" * 300, f"path {'n' * 300!r}: file name too long"),
    ]:
        both.fails(f"read: {words}", "read", file_path=path)
    both.fails("write: dir: is a directory", "write", file_path="dir", content="")
    both.fails("write: f/x: file already exists", "write", file_path="f/x", content="")
    both.fails("write: f/x/y: not a directory", "write", file_path="f/x/y", content="")


@pytest.mark.parametrize("tool", ["write", "edit"])
def test_row_16_read_only_directories_are_only_read(both: Both, tool: str) -> None:
    path = str(both.extra / "uploads" / "f")
    Path(path).write_text("given\n")
    both.says("given\n", "read", file_path=path)
    given = (
        {"content": "x"} if tool == "write" else {"old_string": "given", "new_string": "changed"}
    )
    words = f"{tool}: {path} is inside read-only directory {both.extra / 'uploads'}"
    both.fails(words, tool, file_path=path, **given)
    assert Path(path).read_text() == "given\n"
