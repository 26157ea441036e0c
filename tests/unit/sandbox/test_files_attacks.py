"""What code in the pod may try against the Files service."""

import errno
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import beneath
from cloister_sandbox.paths import Roots
from cloister_sandbox.uploads import Uploads
from support.file_calls import FileCalls, eventually, frames
from support.sandbox_server import Sandbox, refused
from support.swaps import swapping

pytestmark = pytest.mark.long

SECRET = "what is outside"
STATUS = grpc.StatusCode
REFUSALS = (
    STATUS.PERMISSION_DENIED,
    STATUS.FAILED_PRECONDITION,
    STATUS.NOT_FOUND,
    STATUS.ABORTED,
)


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[FileCalls]:
    with claimed.worker() as channel:
        yield FileCalls(channel)


def test_a_directory_swapped_for_a_link_never_leads_outside(
    files: FileCalls, claimed: Sandbox
) -> None:
    outside = claimed.workspace.parent / "attack-outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "f").write_text(SECRET)
    (outside / "sub" / "g").write_text(SECRET)
    race, bait = claimed.workspace / "race" / "d", claimed.workspace / "race" / "bait"
    (race / "sub").mkdir(parents=True)
    (race / "f").write_text("inside")
    (race / "sub" / "g").write_text("inside")
    bait.symlink_to(outside)
    seen: set[bytes] = set()
    done: dict[str, int] = {}

    def count(name: str) -> None:
        done[name] = done.get(name, 0) + 1

    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w") as tar:
        info = tarfile.TarInfo("d/unpacked")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    calls: dict[str, Callable[[int], object]] = {
        "download": lambda _: seen.add(files.download("race/d/f")[0]),
        "tree": lambda _: seen.update(contents(files.download("race", tree=True)[0])),
        "upload": lambda _: files.upload("race/d/f2", b"x"),
        "unpack": lambda _: files.upload("race", tree.getvalue(), tree=True),
        "mkdir": lambda number: files.upload(f"race/d/n{number}/f", b"x"),
        "edit": lambda _: edit(files, "race/d/f"),
        "list": lambda _: seen.update(listed(files)),
        "grep": lambda _: seen.update(found(files)),
        "move": lambda _: files.move("race/d/f2", "race/d/f3", overwrite=True),
        "remove": lambda _: files.remove("race/d/f3"),
        "remove-tree": lambda number: files.remove(f"race/d/n{number}", recursive=True),
    }
    with swapping(race, bait):
        for number in range(150 if "SOAK" in os.environ else 50):
            for name, call in calls.items():
                try:
                    call(number)
                    count(name)
                except grpc.RpcError as error:
                    if error.code() not in REFUSALS:
                        raise
    assert seen <= {b"inside", b"x"}
    left = sorted(str(each.relative_to(outside)) for each in outside.rglob("*"))
    assert left == ["f", "sub", "sub/g"]
    assert (outside / "f").read_text() == (outside / "sub" / "g").read_text() == SECRET
    assert set(done) >= {"download", "tree", "upload", "list"}, done


def contents(data: bytes) -> set[bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        opened = [tar.extractfile(each) for each in tar.getmembers() if each.isreg()]
        return {each.read() for each in opened if each is not None}


def edit(files: FileCalls, path: str) -> None:
    request = exec_pb2.EditRequest(path=path)
    request.edits.add(old_string="inside", new_string="inside")
    files.stub.Edit(request, timeout=20)


def listed(files: FileCalls) -> set[bytes]:
    """The secret, if a file of its size is listed: the link may be seen, nothing through it."""
    entries = files.stub.List(exec_pb2.ListRequest(path="race", depth=5), timeout=20)
    sizes = {each.size for each in entries if each.type == exec_pb2.Entry.TYPE_FILE}
    return {SECRET.encode()} if len(SECRET) in sizes else set()


def found(files: FileCalls) -> set[bytes]:
    lines, _ = files.grep(SECRET, path="race/d", include_ignored=True)
    return {each.encode() for each in lines}


def test_a_target_that_changes_its_kind_never_leads_outside(
    files: FileCalls, claimed: Sandbox
) -> None:
    outside = claimed.workspace.parent / "kinds-outside"
    outside.write_text(SECRET)
    kinds = claimed.workspace / "kinds"
    (kinds / "directory").mkdir(parents=True)
    (kinds / "directory" / "kept").touch()
    (kinds / "link").symlink_to(outside)
    (kinds / "hard").hardlink_to(outside)
    os.mkfifo(kinds / "pipe")
    for name in ("directory", "link", "hard", "pipe"):
        target = kinds / f"{name}-target"
        target.write_bytes(b"before")
        with swapping(target, kinds / name):
            for number in range(40):
                try:
                    files.upload(f"kinds/{target.name}", b"%d" % number)
                except grpc.RpcError as error:
                    if error.code() not in REFUSALS:
                        raise
        assert outside.read_text() == SECRET
    assert not list(kinds.rglob(".cloister*"))


@pytest.mark.parametrize("kind", ["file", "link", "directory", "nothing"])
def test_what_takes_an_uploads_hidden_name_does_not_become_the_file(
    files: FileCalls, claimed: Sandbox, kind: str
) -> None:
    place = claimed.workspace / f"hidden-{kind}"
    place.mkdir()
    (place / "target").write_bytes(b"before")

    def late() -> Iterator[exec_pb2.UploadFrame]:
        *sent, end = frames(f"{place.name}/target", b"content")
        yield from sent
        eventually(lambda: list(place.glob(".cloister-upload-*")))
        (hidden,) = place.glob(".cloister-upload-*")
        hidden.rename(place / "taken")
        if kind == "file":
            hidden.write_bytes(b"forgery")
        elif kind == "link":
            hidden.symlink_to("/etc/passwd")
        elif kind == "directory":
            hidden.mkdir()
        yield end

    with refused(STATUS.DATA_LOSS, reason="FILE_CHANGED"):
        files.stub.Upload(late(), timeout=60)
    assert (place / "target").read_bytes() == b"before"
    assert files.upload(f"{place.name}/target", b"content").size == 7


def test_bytes_that_a_tool_adds_are_not_copied_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(os, "rename", refuse)
    uploads = Uploads(Roots(tmp_path, (), ()))
    upload = uploads.create(exec_pb2.UploadStart(path="f"), str(tmp_path / "f"))
    upload.append([b"content"])
    (tmp_path / upload.name).write_bytes(b"content and more")
    assert uploads.place(upload).size == 7
    upload.discard()
    assert (tmp_path / "f").read_bytes() == b"content"


def test_nothing_blocks_on_what_is_no_file(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace / "special"
    (root / "d").mkdir(parents=True)
    os.mkfifo(root / "d" / "pipe")
    os.mknod(root / "d" / "zero", 0o666 | 0o020000, os.makedev(1, 5))
    (root / "d" / "ok").write_text("x\n")
    for name in ("pipe", "zero"):
        path = f"special/d/{name}"
        with refused(STATUS.FAILED_PRECONDITION):
            files.download(path)
        with refused(STATUS.FAILED_PRECONDITION):
            files.upload(path, b"x")
        with refused(STATUS.FAILED_PRECONDITION):
            edit(files, path)
        with refused(STATUS.FAILED_PRECONDITION):
            files.stub.ReadText(exec_pb2.ReadTextRequest(path=path), timeout=10)
        assert files.stat(path).type == exec_pb2.Entry.TYPE_OTHER
    assert contents(files.download("special", tree=True)[0]) == {b"x\n"}
    assert len(files.grep("x", path="special")[0]) == 1
    assert files.move("special/d/pipe", "special/d/pipe2").type == exec_pb2.Entry.TYPE_OTHER
    files.remove("special", recursive=True)


def test_the_kernels_own_files_are_out_of_reach(files: FileCalls, claimed: Sandbox) -> None:
    for name, target in [
        ("proc", "/proc/1/environ"),
        ("self", "/proc/self/root/etc/passwd"),
        ("fd", "/proc/self/fd/0"),
        ("cwd", "/proc/self/cwd"),
    ]:
        (claimed.workspace / f"magic-{name}").symlink_to(target)
        with refused(STATUS.PERMISSION_DENIED, reason="PATH_REFUSED"):
            files.download(f"magic-{name}")
        with refused(STATUS.PERMISSION_DENIED, reason="PATH_REFUSED"):
            files.upload(f"magic-{name}/x", b"")


def test_names_of_all_kinds(files: FileCalls, claimed: Sandbox) -> None:
    for name in ("line\nbreak", "-rf", "tab\t", "*", "ünï", "'\"$(x)", " ", "a" * 255, "\x7f"):
        files.upload(f"names/{name}", name.encode())
        assert files.download(f"names/{name}")[0] == name.encode()
        assert files.move(f"names/{name}", f"names2-{name[:200]}").size == len(name.encode())
        files.remove(f"names2-{name[:200]}")
    with pytest.raises(grpc.RpcError) as failure:
        files.upload("names/" + "a" * 256, b"x")
    assert failure.value.code() in REFUSALS
    raw = os.fsencode(claimed.workspace) + b"/names/\xff\n\xfe"
    with open(raw, "wb") as file:  # noqa: PTH123 - a name that is no text
        file.write(b"x")
    (entry,) = files.stub.List(exec_pb2.ListRequest(path="names"), timeout=10)
    assert entry.path == f"{claimed.workspace}/names/\ufffd\n\ufffd"
    files.remove("names", recursive=True)


@pytest.fixture(params=[True, False], ids=["openat2", "walking"])
def openat2(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to open beneath a directory; the first needs a kernel that has it."""
    wanted: bool = request.param and beneath.HAS_OPENAT2
    monkeypatch.setattr(beneath, "HAS_OPENAT2", wanted)
    return wanted


@pytest.mark.usefixtures("openat2")
def test_both_ways_to_open_refuse_the_same(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    (tmp_path / "a" / "in").symlink_to("b")
    (tmp_path / "a" / "out").symlink_to("/etc")
    (tmp_path / "a" / "loop").symlink_to("loop")
    root = os.open(tmp_path, beneath.DIRECTORY)
    try:
        for inside in ([], ["a"], ["a", "b"]):
            os.close(beneath.open_directory(root, inside))
        refusals: list[tuple[tuple[str, ...], int]] = [
            (("a", "in"), errno.ENOTDIR),
            (("a", "out"), errno.ENOTDIR),
            (("a", "out", "ssl"), errno.ENOTDIR),
            (("a", "loop"), errno.ENOTDIR),
            (("a", "file"), errno.ENOTDIR),
            (("a", "none"), errno.ENOENT),
            (("..",), errno.EXDEV),
            (("a", "..", "..", "etc"), errno.EXDEV),
        ]
        for parts, number in refusals:
            with pytest.raises(OSError, match=re.escape(os.strerror(number))) as failure:
                beneath.open_directory(root, parts)
            assert failure.value.errno == number, parts
        deep = [f"{'d' * 200}{n}" for n in range(60)]  # longer than one path may be
        os.close(beneath.make_directories(root, deep))
        os.close(beneath.open_directory(root, deep))
        with pytest.raises(FileNotFoundError):
            beneath.open_directory(root, [*deep, "none"])
        opened = [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        assert [str(tmp_path)] == [
            each for each in map(os.readlink, opened) if each.startswith(str(tmp_path))
        ]
    finally:
        os.close(root)


def test_renaming_in_steps_replaces_nothing_either(tmp_path: Path) -> None:
    for name in ("file", "file2"):
        (tmp_path / name).write_text(name)
    for name in ("dir", "dir2"):
        (tmp_path / name / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("nowhere")
    here = os.open(tmp_path, beneath.DIRECTORY)
    try:
        for name, new in [("file", "file2"), ("dir", "dir2"), ("link", "file2"), ("file", "link")]:
            with pytest.raises(FileExistsError):
                beneath.rename_new_in_steps(here, name, here, new)
        for name in ("file", "dir", "link"):
            beneath.rename_new_in_steps(here, name, here, f"{name}-new")
        with pytest.raises(FileNotFoundError):
            beneath.rename_new_in_steps(here, "file", here, "file-3")
    finally:
        os.close(here)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "dir-new",
        "dir2",
        "file-new",
        "file2",
        "link-new",
    ]
    assert (tmp_path / "file2").read_text() == "file2"
    assert (tmp_path / "dir-new" / "dir").is_dir()
