"""Paths: what leads outside is refused, also when it is changed between the check and the use."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.mounts import mounted_files
from cloister_sandbox.paths import Roots, ToolFailure
from support.sandbox_server import Sandbox, Tools, sandbox
from support.swaps import swapping

SECRET = "outside"


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A workspace with a file, a directory outside with a secret, and a read-only root."""
    for name in ("workspace/d", "secrets", "uploads"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "workspace/d/f").write_text("inside")
    (tmp_path / "secrets/f").write_text(SECRET)
    return Roots(tmp_path / "workspace", (tmp_path / "uploads",), (tmp_path / "uploads",))


def test_a_link_put_in_after_the_check_is_not_followed(roots: Roots, tmp_path: Path) -> None:
    resolved = roots.resolve("read", "d/f")
    (tmp_path / "workspace/d").rename(tmp_path / "workspace/old")
    (tmp_path / "workspace/d").symlink_to(tmp_path / "secrets")
    with pytest.raises(NotADirectoryError):
        roots.open(resolved, os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        roots.open(resolved + "2", os.O_WRONLY | os.O_CREAT)
    deeper = str(tmp_path / "workspace/d/made/f")
    with pytest.raises(NotADirectoryError):
        roots.open(deeper, os.O_WRONLY | os.O_CREAT)
    assert sorted(each.name for each in (tmp_path / "secrets").iterdir()) == ["f"]


@pytest.mark.parametrize("swapped", ["home/agent", "home"])
def test_a_link_in_place_of_a_permitted_directory_is_not_followed(
    tmp_path: Path, swapped: str
) -> None:
    """Tools that are root can put it there: what is a process's own would be the server's."""
    (tmp_path / "workspace").mkdir()
    home = tmp_path / "home" / "agent"
    home.mkdir(parents=True)
    roots = Roots(tmp_path / "workspace", (home,), ())
    fd = roots.open(f"{home}/new", os.O_WRONLY | os.O_CREAT)
    os.close(fd)
    (tmp_path / swapped).rename(tmp_path / "aside")
    if swapped == "home":
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "agent").symlink_to("/proc/self")
        (tmp_path / "home").symlink_to(tmp_path / "other")
    else:
        home.symlink_to("/proc/self")
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT):
        with pytest.raises(NotADirectoryError):
            roots.open(f"{home}/environ", flags)
    with pytest.raises(NotADirectoryError):
        roots.nearest(f"{home}/any")
    with pytest.raises(FileNotFoundError):
        roots.find_at_once(f"{home}/environ")


def test_links_of_links_have_an_end(roots: Roots, tmp_path: Path) -> None:
    """A few thousand of them can be a way of hours, though none leads back to another."""
    here = tmp_path / "workspace"

    def link(name: str, parts: list[str]) -> str:
        (here / name).symlink_to("/../".join([*parts, "d"]))
        return name

    leaves = [link(f"leaf-{number}", ["d"] * 500) for number in range(9)]
    twigs = [link(f"twig-{number}", leaves) for number in range(9)]
    for given in (link("tree", twigs), "tree/f"):
        with pytest.raises(ToolFailure, match="too many levels of symbolic links"):
            roots.resolve("read", given)
    assert roots.resolve("read", "leaf-0/f") == str(here / "d/f")


def test_a_way_that_cannot_end_is_not_gathered_first(roots: Roots, tmp_path: Path) -> None:
    """Each call that follows one would hold a hundred megabytes meanwhile."""
    for number in range(300):
        parts = [f"{number + 1:03}", *(f"{part:02x}" for part in range(256))] * 5
        (tmp_path / f"workspace/{number:03}").symlink_to("/".join(parts))
    tracemalloc.start()
    try:
        with pytest.raises(ToolFailure, match="too many levels of symbolic links"):
            roots.resolve("read", "000")
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_root_that_becomes_such_links_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Tools own the directory of long outputs; what they move or remove is compared with it."""
    for name in ("workspace", "kept"):
        (tmp_path / name).mkdir()
    roots = Roots(tmp_path / "workspace", (tmp_path / "kept",), (tmp_path / "kept",))
    (tmp_path / "kept").rename(tmp_path / "gone")
    (tmp_path / "kept").symlink_to(tmp_path / "workspace/f")
    assert roots.resolve_entry("path", "f") == str(tmp_path / "workspace/f")
    assert list(roots.holds(str(tmp_path / "kept"))) == [str(tmp_path / "kept")] * 2


def test_a_leaf_replaced_by_a_link_is_not_followed(roots: Roots, tmp_path: Path) -> None:
    resolved = roots.resolve("read", "d/f")
    (tmp_path / "workspace/d/f").unlink()
    (tmp_path / "workspace/d/f").symlink_to(tmp_path / "secrets/f")
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT):
        with pytest.raises(OSError, match="symbolic"):
            roots.open(resolved, flags)
    assert (tmp_path / "secrets/f").read_text() == SECRET


def test_a_racing_link_never_shows_what_is_outside(tools: Tools, claimed: Sandbox) -> None:
    outside = claimed.workspace.parent / "outside"
    outside.mkdir()
    (outside / "f").write_text(SECRET)
    (claimed.workspace / "race").mkdir()
    (claimed.workspace / "race" / "f").write_text("inside")
    (claimed.workspace / "bait").symlink_to(outside)
    with swapping(claimed.workspace / "race", claimed.workspace / "bait"):
        seen = {
            tools.text("read", file_path="race/f")
            for _ in range(300 if "SOAK" in os.environ else 100)
        }
        for _ in range(100 if "SOAK" in os.environ else 40):
            tools.text("write", file_path="race/g", content="x")
            tools.text("write", file_path="race/deep/g", content="x")
    assert SECRET not in seen
    assert "inside" in seen
    assert [each.name for each in outside.iterdir()] == ["f"]


def test_16_read_only_directories(roots: Roots, tmp_path: Path) -> None:
    path = str(tmp_path / "uploads" / "x")
    assert roots.resolve("read", path) == path
    with pytest.raises(ToolFailure, match=f"write: {path} is inside read-only directory"):
        roots.writable("write", path)


TABLE = """\
21 1 0:19 / / ro,relatime - overlay overlay rw
22 21 0:20 / /proc rw - proc proc rw
23 21 8:1 /vol/f0 {path} ro,relatime - ext4 /dev/sda rw
24 21 8:1 /vol/f1 {spaced} ro - ext4 /dev/sda rw
25 21 8:1 /hosts {writable} rw - ext4 /dev/sda rw
26 21 8:1 / {directory} ro - ext4 /dev/sda rw
27 21 8:1 / /proc/self/environ ro - ext4 /dev/sda rw
short line
"""


def test_only_single_read_only_files_are_taken_from_the_table(tmp_path: Path) -> None:
    names = ("app.yaml", "with space", "hosts")
    path, spaced, writable = (tmp_path / name for name in names)
    for each in (path, spaced, writable):
        each.touch()
    table = tmp_path / "mountinfo"
    table.write_text(
        TABLE.format(
            path=path,
            spaced=str(spaced).replace(" ", "\\040"),
            writable=writable,
            directory=tmp_path,
        )
    )
    assert mounted_files(table) == {str(path), str(spaced)}
    assert mounted_files(tmp_path / "none") == frozenset()


@pytest.fixture
def with_mount(tmp_path: Path) -> Iterator[tuple[Sandbox, Path]]:
    """A claimed server that believes one file outside its roots to be mounted."""
    path = tmp_path / "etc" / "app" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("debug: true\n")
    (path.parent / "neighbour").write_text(SECRET)
    table = tmp_path / "mountinfo"
    table.write_text(f"23 21 8:1 /f0 {path} ro - ext4 /dev/sda rw\n")
    with sandbox(tmp_path / "s", env={"CLOISTER_MOUNT_TABLE": str(table)}) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        yield server, path


def test_a_mounted_file_is_read_where_it_is_and_never_written(
    with_mount: tuple[Sandbox, Path],
) -> None:
    server, path = with_mount
    with server.worker() as channel:
        tools, files = Tools(channel), exec_pb2_grpc.FilesStub(channel)
        assert tools.text("read", file_path=str(path)) == "debug: true\n"
        assert tools.text("grep", pattern="debug", path=str(path)) == f"{path}:1:debug: true\n"
        stat = files.Stat(exec_pb2.StatRequest(path=str(path)), timeout=5)
        assert (stat.type, stat.size) == (exec_pb2.Entry.TYPE_FILE, 12)
        chunks = list(files.Download(exec_pb2.DownloadRequest(path=str(path)), timeout=5))
        assert b"".join(chunk.data for chunk in chunks) == b"debug: true\n"
        refusal = f"{path} is a read-only file of the Environment"
        assert tools.text("write", file_path=str(path), content="x") == f"write: {refusal}"
        edited = tools.text("edit", file_path=str(path), old_string="true", new_string="x")
        assert edited == f"edit: {refusal}"
        for outside in (path.parent, path.parent / "neighbour"):
            assert "is outside" in tools.text("read", file_path=str(outside))
    assert path.read_text() == "debug: true\n"
