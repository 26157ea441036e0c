"""Files and trees in and out."""

import os
from pathlib import Path

import pytest

import cloister
from cloister import _fetching
from support.sandbox_server import Sandbox

pytestmark = pytest.mark.long


def make_tree(root: Path) -> None:
    """Files, modes, an empty directory, and links of all kinds."""
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty" / "inside").mkdir(parents=True)
    (root / "sub" / "a.bin").write_bytes(bytes(range(256)) * 3000)
    (root / "sub" / "deep" / "nothing").touch()
    (root / "run me.sh").write_text("#!/bin/sh\necho ran\n")
    (root / "run me.sh").chmod(0o755)
    (root / "link").symlink_to("run me.sh")
    (root / "dirlink").symlink_to("sub")
    (root / "dangling").symlink_to("nowhere")


def names(root: Path) -> set[str]:
    """Relative paths of everything below."""
    return {str(each.relative_to(root)) for each in root.rglob("*")}


def test_a_tree_goes_in_and_comes_back(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    source, back = tmp_path / "tree", tmp_path / "back"
    make_tree(source)
    with client.create_session("env") as session:
        left_out = session.upload(source, "there")
        assert left_out == sorted([str(source / "dangling"), str(source / "dirlink")])
        arrived = server.workspace / "there"
        assert names(arrived) == names(source) - {"dirlink", "dangling"}
        assert (arrived / "run me.sh").stat().st_mode & 0o777 == 0o755
        assert not (arrived / "link").is_symlink()
        (arrived / "outward").symlink_to("/etc/passwd")
        assert session.download("there", back) == [str(arrived / "outward")]
    assert names(back) == names(arrived) - {"outward"}
    assert (back / "sub" / "a.bin").read_bytes() == (source / "sub" / "a.bin").read_bytes()
    assert (back / "run me.sh").stat().st_mode & 0o777 == 0o755


def test_a_directory_as_the_target_keeps_the_sources_name(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with client.create_session("env") as session:
        session.bash("mkdir -p box")
        session.upload(tmp_path / "file", "box")
        session.upload(tmp_path / "file", "new/")
        assert (server.workspace / "box" / "file").read_text() == "x"
        assert (server.workspace / "new" / "file").read_text() == "x"
        (tmp_path / "out").mkdir()
        session.download("box/file", tmp_path / "out")
        session.download("box", tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert (tmp_path / "out" / "box" / "file").read_text() == "x"


def test_bytes(client: cloister.Client) -> None:
    with client.create_session("env") as session:
        entry = session.write_bytes("b", b"\0\xff", mode=0o600)
        assert (entry.type, entry.size, entry.mode) == ("file", 2, 0o600)
        assert session.read_bytes("b") == b"\0\xff"
        with pytest.raises(cloister.FailedPreconditionError, match="more than 1 bytes"):
            session.read_bytes("b", limit=1)
        assert entry.path in [
            each.path for each in session.list_files(str(Path(entry.path).parent))
        ]
        with pytest.raises(cloister.NotFoundError):
            session.stat("missing")
        with pytest.raises(cloister.PermissionDeniedError):
            session.write_bytes("/etc/x", b"")


def test_local_trouble_is_named(client: cloister.Client, tmp_path: Path) -> None:
    with client.create_session("env") as session:
        with pytest.raises(cloister.LocalFileError, match="no such file"):
            session.upload(tmp_path / "missing", "x")
        session.write_bytes("b", b"x")
        with pytest.raises(cloister.LocalFileError, match="cannot write"):
            session.download("b", tmp_path / "no" / "such" / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "kubeconfig"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/w/../x", "/w", "/wx/y", "relative"])
def test_a_lying_sandbox_writes_nothing_outside_the_target(path: str) -> None:
    with pytest.raises(cloister.DataLossError):
        _fetching.below("/w", path)
    assert str(_fetching.below("/w", "/w/a/b")) == "a/b"


def test_names_modes_and_times_come_through(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    source, back = tmp_path / "exact", tmp_path / "exact-back"
    odd = ["with space", "line\nbreak", "-dash", "ünï", os.fsdecode(b"\xff\xfe bytes"), "x" * 255]
    (source / odd[4] / "below").mkdir(parents=True)
    (source / "empty folder").mkdir(mode=0o700)
    for number, name in enumerate(odd[:4] + odd[5:]):
        (source / name).write_text(name, errors="surrogateescape")
        (source / name).chmod(0o600 + number)
        os.utime(source / name, ns=(0, 1_500_000_000_123_456_789 + number))
    (source / odd[4] / "below" / "f").write_bytes(b"f")
    (source / "large").write_bytes(os.urandom(3_000_000))
    os.utime(source / "large", ns=(0, 1_400_000_000_987_654_321))
    with client.create_session("env") as session:
        assert session.upload(source, "exact") == []
        assert session.download("exact", back) == []
    for root in (server.workspace / "exact", back):
        assert names(root) == names(source)
        for each in source.rglob("*"):
            copied = root / each.relative_to(source)
            if each.is_dir():
                continue
            assert copied.read_bytes() == each.read_bytes()
            assert copied.stat().st_mode == each.stat().st_mode
            # The fraction of a second passes through a float.
            assert abs(copied.stat().st_mtime_ns - each.stat().st_mtime_ns) < 1000
        assert (root / "empty folder").stat().st_mode & 0o777 == 0o700


def test_directories_deeper_than_one_listing(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    deepest = tmp_path / "deep"
    for level in range(150):
        deepest /= f"d{level}"
        deepest.mkdir(parents=True)
        (deepest / "f").write_text(str(level))
    with client.create_session("env") as session:
        session.upload(tmp_path / "deep", "deep")
        assert names(server.workspace / "deep") == names(tmp_path / "deep")
        session.download("deep", tmp_path / "deep-back")
        assert len(session.list_files("deep", depth=1000)) == 300
        assert len(session.list_files("deep", depth=100)) == 199
    assert names(tmp_path / "deep-back") == names(tmp_path / "deep")


def test_what_is_the_same_is_passed_over_unless_it_is_asked_for(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    source, here = tmp_path / "same", tmp_path / "here"
    source.mkdir()
    here.mkdir()
    for name in ("kept", "written", "chmodded"):
        (source / name).write_text("12345")
    there = server.workspace / "same-box" / "same"

    def inodes(root: Path) -> dict[str, int]:
        return {each.name: each.stat().st_ino for each in root.iterdir()}

    with client.create_session("env") as session:
        session.upload(source, "same-box/")
        session.download("same-box/same", here)
        sent, fetched = inodes(there), inodes(here / "same")
        before = (source / "written").stat().st_mtime_ns
        (source / "written").write_text("54321")
        os.utime(source / "written", ns=(0, before + 2000))
        (source / "chmodded").chmod(0o755)
        session.upload(source, "same-box/")
        session.download("same-box/same", here)
        assert {n for n in sent if inodes(there)[n] != sent[n]} == {"written", "chmodded"}
        assert {n for n in sent if inodes(here / "same")[n] != fetched[n]} == {
            "written",
            "chmodded",
        }
        assert (there / "written").read_text() == (here / "same" / "written").read_text() == "54321"
        sent, fetched = inodes(there), inodes(here / "same")
        session.upload(source, "same-box/", skip_same=False)
        session.download("same-box/same", here, skip_same=False)
    assert all(inodes(there)[each] != sent[each] for each in sent)
    assert all(inodes(here / "same")[each] != fetched[each] for each in fetched)


def test_a_complete_copy_is_no_interrupted_one(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "f").write_text("x")
    with client.create_session("env") as session:
        for _ in range(2):
            session.upload(tmp_path / "twice", "twice")
            session.download("twice/f", tmp_path / "twice.f")
            session.download("twice", tmp_path / "twice-back")
    assert names(server.workspace / "twice") == {"f", "twice", "twice/f"}
    assert names(tmp_path / "twice-back") == {
        "f",
        "twice",
        "twice/f",
        "twice/twice",
        "twice/twice/f",
    }


def test_progress_counts_bytes_and_files(client: cloister.Client, tmp_path: Path) -> None:
    source = tmp_path / "counted"
    (source / "sub").mkdir(parents=True)
    sizes = {"a": 10, "sub/b": 5_000, "sub/large": 4_000_000, "empty": 0}
    for name, size in sizes.items():
        (source / name).write_bytes(b"x" * size)
    total = sum(sizes.values())
    with client.create_session("env") as session:
        for out in (False, True):
            seen: list[tuple[int, int | None, int, str]] = []

            def tell(
                done: int,
                total: int | None,
                files: int,
                name: str,
                seen: list[tuple[int, int | None, int, str]] = seen,
            ) -> None:
                seen.append((done, total, files, name))

            if out:
                session.download("counted", tmp_path / "counted-back", progress=tell)
            else:
                session.upload(source, "counted", progress=tell)
            assert seen[0] == (0, total, 0, "")
            assert seen[-1][:3] == (total, total, len(sizes))
            assert [each[0] for each in seen] == sorted(each[0] for each in seen)
            assert {each[3] for each in seen} == {"", *sizes}
        one: list[tuple[int, int | None, int, str]] = []
        session.download("counted/sub/large", tmp_path, progress=lambda *each: one.append(each))
    assert one[0] == (0, 4_000_000, 0, "")
    assert one[-1] == (4_000_000, 4_000_000, 1, "large")


def test_a_local_file_that_changes_is_no_upload(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    source = tmp_path / "restless"
    source.write_bytes(b"x" * 3_000_000)

    def grow(done: int, total: int | None, files: int, name: str) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    with (
        client.create_session("env") as session,
        pytest.raises(cloister.LocalFileError, match="changed while it was read"),
    ):
        session.upload(source, "restless", progress=grow)
    assert not (server.workspace / "restless").exists()


def test_a_file_of_the_sandbox_that_goes_on_changing_is_no_download(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    path = server.workspace / "log"
    path.write_bytes(b"x" * 3_000_000)
    calls = 0

    def grow(done: int, total: int | None, files: int, name: str) -> None:
        nonlocal calls
        calls += 1
        with path.open("ab") as file:
            file.write(b"more")

    with (
        client.create_session("env") as session,
        pytest.raises(cloister.DataLossError, match="changed while it was read"),
    ):
        session.download("log", tmp_path / "log", progress=grow)
    assert calls > 3
    assert not list(tmp_path.glob("*log*"))
