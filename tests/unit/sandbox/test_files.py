"""The Files service: bytes in and out, whole or not at all."""

import os
from collections.abc import Iterable, Iterator

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from support.sandbox_server import Sandbox, refused

Frame = exec_pb2.UploadFrame


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[exec_pb2_grpc.FilesStub]:
    """The service, as the session's worker."""
    with claimed.worker() as channel:
        yield exec_pb2_grpc.FilesStub(channel)


def start(path: str, mode: int = 0) -> exec_pb2.UploadFrame:
    return Frame(start=exec_pb2.UploadStart(path=path, mode=mode))


def end(size: int) -> exec_pb2.UploadFrame:
    return Frame(end=exec_pb2.UploadEnd(size=size))


def upload(files: exec_pb2_grpc.FilesStub, *frames: exec_pb2.UploadFrame) -> exec_pb2.Entry:
    return files.Upload(iter(frames), timeout=20)


def names(entries: Iterable[exec_pb2.Entry], sandbox: Sandbox) -> list[str]:
    return [os.path.relpath(entry.path, sandbox.workspace) for entry in entries]


def test_an_upload_comes_back_as_it_was(files: exec_pb2_grpc.FilesStub, claimed: Sandbox) -> None:
    content = os.urandom(3_000_000)
    pieces = [Frame(data=content[at : at + 65_536]) for at in range(0, len(content), 65_536)]
    entry = upload(files, start("up/loaded.bin", 0o640), *pieces, end(len(content)))
    path = claimed.workspace / "up/loaded.bin"
    assert (entry.path, entry.size, entry.mode) == (str(path), len(content), 0o640)
    assert path.read_bytes() == content
    chunks = list(files.Download(exec_pb2.DownloadRequest(path="up/loaded.bin"), timeout=20))
    assert b"".join(chunk.data for chunk in chunks) == content
    rest = exec_pb2.DownloadRequest(path="up/loaded.bin", offset=2_999_990)
    (last,) = files.Download(rest, timeout=20)
    assert (last.offset, last.data) == (2_999_990, content[-10:])
    beyond = exec_pb2.DownloadRequest(path="up/loaded.bin", offset=4_000_000)
    (nothing,) = files.Download(beyond, timeout=20)
    assert (nothing.data, nothing.entry.size, nothing.crc32) == (b"", len(content), 0)


def test_an_empty_file_and_the_default_mode(
    files: exec_pb2_grpc.FilesStub, claimed: Sandbox
) -> None:
    assert upload(files, start("nothing"), end(0)).mode == 0o644
    assert (claimed.workspace / "nothing").read_bytes() == b""


@pytest.mark.parametrize(
    ("frames", "code", "reason"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([Frame(data=b"x")], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([start("b"), start("b")], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([start("b", 0o4755), end(0)], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([start(""), end(0)], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([start("b"), Frame(data=b"x")], grpc.StatusCode.DATA_LOSS, "NO_END"),
        ([start("b"), Frame(data=b"x"), end(2)], grpc.StatusCode.DATA_LOSS, "SIZE_MISMATCH"),
        ([start("/etc/b"), end(0)], grpc.StatusCode.PERMISSION_DENIED, "PATH_REFUSED"),
        ([start("../b"), end(0)], grpc.StatusCode.PERMISSION_DENIED, "PATH_REFUSED"),
        ([start("a\0b"), end(0)], grpc.StatusCode.PERMISSION_DENIED, "PATH_REFUSED"),
    ],
)
def test_a_refused_upload_leaves_nothing(
    files: exec_pb2_grpc.FilesStub,
    claimed: Sandbox,
    frames: list[exec_pb2.UploadFrame],
    code: grpc.StatusCode,
    reason: str,
) -> None:
    before = sorted(claimed.workspace.iterdir())
    (claimed.workspace / "b").write_text("old")
    with refused(code, reason=reason):
        upload(files, *frames)
    assert (claimed.workspace / "b").read_text() == "old"
    (claimed.workspace / "b").unlink()
    assert sorted(claimed.workspace.iterdir()) == before


def test_a_directory_is_not_overwritten(files: exec_pb2_grpc.FilesStub, claimed: Sandbox) -> None:
    (claimed.workspace / "adir").mkdir()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="FILE_ERROR"):
        upload(files, start("adir"), end(0))
    assert list((claimed.workspace / "adir").iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(
    files: exec_pb2_grpc.FilesStub, claimed: Sandbox
) -> None:
    def frames() -> Iterator[exec_pb2.UploadFrame]:
        yield start("cut")
        yield Frame(data=b"x" * 1000)
        raise RuntimeError("the client went away")

    with pytest.raises(grpc.RpcError):
        files.Upload(frames(), timeout=20)
    while list(claimed.workspace.glob(".cloister-upload-*")):  # until the server has seen it
        files.Stat(exec_pb2.StatRequest(path="."), timeout=5)
    assert not (claimed.workspace / "cut").exists()


def test_stat(files: exec_pb2_grpc.FilesStub, claimed: Sandbox) -> None:
    root = claimed.workspace
    (root / "s.txt").write_text("four")
    (root / "s.txt").chmod(0o600)
    entry = files.Stat(exec_pb2.StatRequest(path="s.txt"), timeout=5)
    assert (entry.path, entry.type, entry.size, entry.mode) == (
        str(root / "s.txt"),
        exec_pb2.Entry.TYPE_FILE,
        4,
        0o600,
    )
    assert entry.mtime.ToNanoseconds() == (root / "s.txt").stat().st_mtime_ns
    for path, code in [
        ("gone", grpc.StatusCode.NOT_FOUND),
        ("s.txt/x", grpc.StatusCode.FAILED_PRECONDITION),
        ("/etc/passwd", grpc.StatusCode.PERMISSION_DENIED),
    ]:
        with refused(code):
            files.Stat(exec_pb2.StatRequest(path=path), timeout=5)


def test_a_link_to_what_is_no_text_can_be_listed(
    files: exec_pb2_grpc.FilesStub, claimed: Sandbox
) -> None:
    root = claimed.workspace / "odd"
    root.mkdir()
    (root / "link").symlink_to(os.fsdecode(b"\xff\xfe"))
    (entry,) = files.List(exec_pb2.ListRequest(path="odd"), timeout=5)
    assert entry.symlink_target == "\ufffd\ufffd"


def test_list_walks_parents_first_and_follows_no_link(
    files: exec_pb2_grpc.FilesStub, claimed: Sandbox
) -> None:
    root = claimed.workspace / "tree"
    (root / "b" / "c").mkdir(parents=True)
    (root / "a").touch()
    (root / "b" / "c" / "deep").touch()
    (root / "link").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    shallow = list(files.List(exec_pb2.ListRequest(path="tree"), timeout=5))
    assert names(shallow, claimed) == ["tree/a", "tree/b", "tree/link", "tree/pipe"]
    kinds = exec_pb2.Entry
    assert [entry.type for entry in shallow] == [
        kinds.TYPE_FILE,
        kinds.TYPE_DIRECTORY,
        kinds.TYPE_SYMLINK,
        kinds.TYPE_OTHER,
    ]
    assert shallow[2].symlink_target == "/etc"
    deep = names(files.List(exec_pb2.ListRequest(path="tree", depth=9), timeout=5), claimed)
    assert deep == [*names(shallow, claimed), "tree/b/c", "tree/b/c/deep"]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "depth"):
        list(files.List(exec_pb2.ListRequest(path="tree", depth=65), timeout=5))
    with refused(grpc.StatusCode.NOT_FOUND):
        list(files.List(exec_pb2.ListRequest(path="gone"), timeout=5))
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        list(files.List(exec_pb2.ListRequest(path="tree/link"), timeout=5))


def test_a_large_directory_is_listed_whole(
    files: exec_pb2_grpc.FilesStub, claimed: Sandbox
) -> None:
    (claimed.workspace / "large").mkdir()
    for number in range(600):
        (claimed.workspace / "large" / f"{number:04}").touch()
    listed = names(files.List(exec_pb2.ListRequest(path="large"), timeout=20), claimed)
    assert listed == [f"large/{number:04}" for number in range(600)]


def test_what_is_no_file_is_not_downloaded(
    files: exec_pb2_grpc.FilesStub, claimed: Sandbox
) -> None:
    os.mkfifo(claimed.workspace / "a-pipe")
    for path, code in [
        ("a-pipe", grpc.StatusCode.FAILED_PRECONDITION),
        (".", grpc.StatusCode.FAILED_PRECONDITION),
        ("gone", grpc.StatusCode.NOT_FOUND),
        ("/etc/passwd", grpc.StatusCode.PERMISSION_DENIED),
    ]:
        with refused(code):
            list(files.Download(exec_pb2.DownloadRequest(path=path), timeout=5))
