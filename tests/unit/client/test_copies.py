"""Files and trees in and out."""

from pathlib import Path

import pytest

import cloister
from cloister import _fetching
from support.sandbox_server import Sandbox


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
