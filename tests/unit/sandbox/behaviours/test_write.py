"""Behaviours 29 to 37: write and edit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloister_sandbox.paths import Roots, ToolFailure
from cloister_sandbox.toolset.write import edit, write
from support.reference_toolset import Answer, Both


def test_row_29_write_makes_parents_and_keeps_what_a_file_is(both: Both) -> None:
    both.says("wrote 1 bytes to new/deep/f", "write", file_path="new/deep/f", content="x")
    both.write("kept.sh", b"a long old text")

    def build(root: Path) -> None:
        (root / "kept.sh").chmod(0o750)
        os.link(root / "kept.sh", root / "link.sh")

    both.make(build)
    before = (both.root / "kept.sh").stat()
    both.says("wrote 3 bytes to kept.sh", "write", file_path="kept.sh", content="new")
    for root in (both.root, both.reference.root):
        link = root / "link.sh"
        assert (link.read_text(), link.stat().st_mode & 0o777) == ("new", 0o750)
    assert (both.root / "kept.sh").stat().st_ino == before.st_ino
    large = "l" * 3_000_000
    both.says("wrote 3000000 bytes to large", "write", file_path="large", content=large)
    assert (both.root / "large").read_text() == large


def test_row_30_write_counts_bytes(both: Both) -> None:
    theirs = both.theirs("write", file_path="u", content="héllo")
    assert theirs == Answer("wrote 5 bytes to u", False)
    assert both.ours("write", file_path="u", content="héllo") == Answer("wrote 6 bytes to u", False)
    assert (both.root / "u").read_bytes() == (both.reference.root / "u").read_bytes()


def test_row_31_write_never_blocks_on_what_is_no_file(both: Both) -> None:
    # The reference opens it, and waits for a reader for as long as none comes.
    os.mkfifo(both.root / "fifo")
    (both.root / "null").symlink_to("/dev/null")
    words = Answer("write: fifo: not a regular file", True)
    assert both.ours("write", file_path="fifo", content="x") == words
    assert both.ours("write", file_path="null", content="x").is_error


FULL = """
import json, sys
from pathlib import Path
from cloister_sandbox.paths import Roots, ToolFailure
from cloister_sandbox.toolset.write import write
from support.reference_toolset import Reference
root = Path(sys.argv[1])
found = {}
def ours(**given):
    try:
        return write(Roots(root, (), ()), given).text
    except ToolFailure as failure:
        return str(failure)
reference = Reference(root, root, {"PATH": "/usr/bin"})
def theirs(**given):
    return reference.call("write", **given).text
for name, tool in (("ours", ours), ("theirs", theirs)):
    (root / "old").write_text("old" * 1000)
    text = tool(file_path="old", content="new" * 200_000)
    kept = (root / "old").read_text() == "old" * 1000
    (root / "old").unlink()
    again = tool(file_path="fresh", content="new" * 200_000)
    found[name] = [text, kept, again, (root / "fresh").exists()]
    (root / "fresh").unlink(missing_ok=True)
print(json.dumps(found))
"""


def test_row_32_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    # In a mount namespace of its own: a filesystem of 256 KiB.
    script = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-ec", script, "-", str(tmp_path), sys.executable, FULL]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    failed = [f"write: {name}: no space left on device" for name in ("old", "fresh")]
    assert found["ours"] == [failed[0], True, failed[1], False]
    assert found["theirs"] == [failed[0], False, failed[1], True]


def test_row_33_what_stands_in_the_way(both: Both) -> None:
    both.write("a.txt", b"")
    both.make(lambda root: (root / "dir").mkdir())
    both.fails("write: dir: is a directory", "write", file_path="dir", content="")
    both.fails("write: a.txt/x: file already exists", "write", file_path="a.txt/x", content="")


def test_row_34_what_utf_8_cannot_encode_is_refused(both: Both, tmp_path: Path) -> None:
    # It cannot even be sent to the server, so the tool itself is asked.
    both.write("f", b"untouched")
    theirs = both.reference.call("write", file_path="f", content="a\ud800")
    words = "UnicodeEncodeError('utf-8', 'a\\ud800', 1, 2, 'surrogates not allowed')"
    assert theirs == Answer(words, True)
    roots = Roots(both.root, (), ())
    with pytest.raises(ToolFailure) as failure:
        write(roots, {"file_path": "f", "content": "a\ud800"})
    assert str(failure.value) == theirs.text
    with pytest.raises(ToolFailure, match="surrogates not allowed"):
        edit(roots, {"file_path": "f", "old_string": "un", "new_string": "a\ud800"})
    with pytest.raises(UnicodeEncodeError):
        both.ours("write", file_path="f", content="a\ud800")
    ours, left = (both.root / "f").read_text(), (both.reference.root / "f").read_text()
    assert ours == left == "untouched"


@pytest.mark.parametrize(
    ("old", "new", "everywhere", "text"),
    [
        ("none", "x", False, "edit: old_string not found in e.txt"),
        ("A", "x", False, "edit: old_string not found in e.txt"),
        ("a", "x", False, "edit: old_string appears 4 times in e.txt (must be unique)"),
        ("aa", "x", False, "edit: old_string appears 2 times in e.txt (must be unique)"),
        ("b", "é", False, "edited e.txt (1 replacement(s))"),
        ("b", "", True, "edited e.txt (1 replacement(s))"),
        ("a", "bb", True, "edited e.txt (4 replacement(s))"),
        ("aa", "a", True, "edited e.txt (2 replacement(s))"),
        ("a b\na", "\\1", False, "edited e.txt (1 replacement(s))"),
    ],
)
def test_row_35_edit_replaces_the_exact_string(
    both: Both, old: str, new: str, everywhere: bool, text: str
) -> None:
    both.write("e.txt", b"aa b\naa .* \n")
    given = {"old_string": old, "new_string": new, "replace_all": everywhere}
    assert both.same("edit", file_path="e.txt", **given).text == text
    changed = (both.root / "e.txt").read_bytes()
    assert changed == (both.reference.root / "e.txt").read_bytes()


def test_row_36_what_edit_refuses(both: Both) -> None:
    both.write("big.txt", (b"y" * 79 + b"\n") * 6000)
    both.write("bin", b"\xff\xfe\x00")
    both.make(lambda root: os.mkfifo(root / "fifo"))
    both.make(lambda root: (root / "dir").mkdir())
    for name, words in [
        (
            "big.txt",
            (
                "big.txt is 480000 bytes, exceeds 262144-byte limit. "
                "The edit tool loads the whole file and cannot modify a file this large."
            ),
        ),
        ("bin", "bin: not valid UTF-8 text (cannot edit binary files)"),
        ("fifo", "fifo: not a regular file"),
        ("dir", "dir: not a regular file"),
        ("gone", "gone: no such file or directory"),
    ]:
        both.fails(f"edit: {words}", "edit", file_path=name, old_string="y", new_string="")


def test_row_37_edges_of_edit(both: Both) -> None:
    both.write("empty", b"")
    both.write("e.txt", b"abc")
    both.write("crlf.txt", b"one\r\ntwo\r\n")
    inserted = {"old_string": "", "new_string": "x"}
    both.says("edited empty (1 replacement(s))", "edit", file_path="empty", **inserted)
    many = "edit: old_string appears 4 times in e.txt (must be unique)"
    both.fails(many, "edit", file_path="e.txt", **inserted)
    same = {"file_path": "e.txt", "old_string": "b", "new_string": "b"}
    assert both.theirs("edit", **same) == Answer("edited e.txt (1 replacement(s))", False)
    note = "edited e.txt (1 replacement(s)); old_string and new_string are the same"
    assert both.ours("edit", **same) == Answer(note, False)
    lines = {"file_path": "crlf.txt", "old_string": "one\ntwo", "new_string": "x"}
    none = "edit: old_string not found in crlf.txt"
    assert both.theirs("edit", **lines) == Answer(none, True)
    assert both.ours("edit", **lines) == Answer(f"{none} (the file's lines end in CRLF)", True)
