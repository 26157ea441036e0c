"""Downloads and uploads: in part, resumed, checked, conditional."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import uploads as uploads_module
from cloister_sandbox.paths import Roots
from cloister_sandbox.trees import file_pieces
from cloister_sandbox.uploads import Uploads
from support.file_calls import CHUNK, FileCalls, Frame, eventually, frames
from support.sandbox_server import Sandbox, refused, sandbox

STATUS = grpc.StatusCode


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[FileCalls]:
    with claimed.worker() as channel:
        yield FileCalls(channel)


def hidden(sandbox: Sandbox) -> list[str]:
    return [each.name for each in sandbox.workspace.rglob(".cloister-upload-*")]


def cut(files: FileCalls, path: str, data: bytes, upload_id: str, skip: int = 0) -> None:
    """Send the bytes of an upload behind the first `skip`, and end the stream before its end."""
    whole = list(frames(path, data, skip=skip, upload_id=upload_id))
    with refused(STATUS.DATA_LOSS, reason="NO_END"):
        files.stub.Upload(iter(whole[:-1]), timeout=60)
    assert files.offset(upload_id) == len(data)


def test_a_part_of_a_file(files: FileCalls, claimed: Sandbox) -> None:
    content = os.urandom(300_000)
    (claimed.workspace / "part").write_bytes(content)
    data, entry = files.download("part", offset=100_000, length=150_000)
    assert data == content[100_000:250_000]
    assert (entry.path, entry.size) == (str(claimed.workspace / "part"), 300_000)
    assert files.download("part", offset=299_999, length=10)[0] == content[-1:]
    assert files.download("part", offset=400_000)[0] == b""


def test_the_end_of_the_longest_file_is_read() -> None:
    """As long as files in memory may be."""
    longest = 2**63 - 1
    fd = os.memfd_create("longest")
    try:
        os.ftruncate(fd, longest)
        os.pwrite(fd, b"end", longest - 3)
        assert [data for _, data, _ in file_pieces(fd, longest - 3, 0)] == [b"end"]
        assert [data for _, data, _ in file_pieces(fd, longest - 3, 2)] == [b"en"]
        assert [data for _, data, _ in file_pieces(fd, longest - 2, 2**64 - 1)] == [b"nd"]
        assert not [*file_pieces(fd, longest, 1), *file_pieces(fd, 2**64 - 1, 2**64 - 1)]
    finally:
        os.close(fd)


def test_a_download_goes_on_only_with_the_same_file(files: FileCalls, claimed: Sandbox) -> None:
    path = claimed.workspace / "same"
    path.write_bytes(b"first")
    etag = files.stat("same").etag
    assert files.download("same", if_etag=etag)[1].etag == etag
    path.write_bytes(b"other")
    assert files.stat("same").etag != etag
    with refused(STATUS.ABORTED, reason="ETAG_MISMATCH"):
        files.download("same", if_etag=etag)


def test_a_file_that_changes_while_it_is_sent_has_another_etag_behind_it(
    files: FileCalls, claimed: Sandbox
) -> None:
    """How a caller finds out: what was read before cannot be taken back."""
    path = claimed.workspace / "changing"
    path.write_bytes(b"A" * 64 * CHUNK)
    chunks = files.stub.Download(exec_pb2.DownloadRequest(path="changing"), timeout=60)
    first = next(chunks)
    path.write_bytes(b"B" * 48 * CHUNK)
    data = first.data + b"".join(each.data for each in chunks)
    assert data == b"A" * data.count(b"A") + b"B" * data.count(b"B")
    assert files.stat("changing").etag != first.entry.etag


def test_a_file_replaced_by_one_of_the_same_size_and_time_has_another_etag(
    files: FileCalls, claimed: Sandbox
) -> None:
    path, other = claimed.workspace / "twin", claimed.workspace / "twin2"
    for each in (path, other):
        each.write_bytes(b"12345")
        os.utime(each, ns=(1, 1))
    before = files.stat("twin").etag
    other.rename(path)
    assert files.stat("twin").etag != before


def test_a_cut_upload_goes_on_where_it_stopped(files: FileCalls, claimed: Sandbox) -> None:
    content = os.urandom(3 * CHUNK + 7)
    cut(files, "resumed", content[:CHUNK], "up-1")
    cut(files, "resumed", content[: 2 * CHUNK], "up-1", skip=CHUNK)
    assert not (claimed.workspace / "resumed").exists()
    with refused(STATUS.FAILED_PRECONDITION, reason="OFFSET_MISMATCH"):
        files.upload("resumed", content, upload_id="up-1")
    assert files.offset("up-1") == 2 * CHUNK
    with refused(STATUS.ALREADY_EXISTS, reason="ID_CONFLICT"):
        files.upload("elsewhere", content, upload_id="up-1", skip=2 * CHUNK)
    entry = files.upload("resumed", content, upload_id="up-1", skip=2 * CHUNK)
    assert (claimed.workspace / "resumed").read_bytes() == content
    assert hidden(claimed) == []
    # The answer was lost: the caller asks, goes on with nothing, and has it again.
    (claimed.workspace / "resumed").write_bytes(b"changed since")
    assert files.offset("up-1") == len(content)
    again = files.upload("resumed", content, upload_id="up-1", skip=len(content))
    assert again == entry
    assert (claimed.workspace / "resumed").read_bytes() == b"changed since"


def test_a_caller_that_goes_away_loses_nothing_that_was_written(
    files: FileCalls, claimed: Sandbox
) -> None:
    content = os.urandom(3_000_000)
    enough = threading.Event()

    def stalled() -> Iterator[exec_pb2.UploadFrame]:
        yield from list(frames("gone", content, upload_id="up-gone"))[:-1]
        enough.wait(20)

    call = files.stub.Upload.future(stalled(), timeout=60)
    eventually(lambda: files.offset("up-gone") > 1_000_000)
    call.cancel()
    enough.set()

    def finished() -> bool:
        try:
            files.upload("gone", content, upload_id="up-gone", skip=files.offset("up-gone"))
        except grpc.RpcError as error:  # the lost stream still wrote when it was asked
            if error.code() is not STATUS.FAILED_PRECONDITION:
                raise
            return False
        return True

    eventually(finished)
    assert (claimed.workspace / "gone").read_bytes() == content


def test_a_second_stream_takes_an_upload_over(files: FileCalls, claimed: Sandbox) -> None:
    content = os.urandom(2 * CHUNK)
    go_on = threading.Event()

    def stalled() -> Iterator[exec_pb2.UploadFrame]:
        yield Frame(start=exec_pb2.UploadStart(path="taken", upload_id="up-2"))
        yield Frame(data=b"")
        go_on.wait(20)
        yield Frame(data=b"too late" * 200_000)

    first = files.stub.Upload.future(stalled(), timeout=60)
    eventually(lambda: bool(hidden(claimed)))
    files.upload("taken", content, upload_id="up-2")
    go_on.set()
    with refused(STATUS.ABORTED, reason="SUPERSEDED"):
        first.result()
    assert (claimed.workspace / "taken").read_bytes() == content


def test_bytes_that_changed_on_the_way_are_not_written(files: FileCalls, claimed: Sandbox) -> None:
    with refused(STATUS.DATA_LOSS, reason="CHECKSUM_MISMATCH"):
        files.upload("spoiled", b"content", checksum=1, upload_id="up-3")
    assert not (claimed.workspace / "spoiled").exists()
    assert files.offset("up-3") == 0
    assert hidden(claimed) == []
    files.upload("spoiled", b"content", upload_id="up-3")


def test_conditions_of_an_upload(files: FileCalls, claimed: Sandbox) -> None:
    files.upload("cond", b"1", create_only=True, mode=0o600)
    with refused(STATUS.ALREADY_EXISTS, reason="EXISTS"):
        files.upload("cond", b"2", create_only=True)
    etag = files.stat("cond").etag
    assert files.upload("cond", b"3", if_etag=etag).mode == 0o600, "the mode is kept"
    for path in ("cond", "cond-none"):
        with refused(STATUS.ABORTED, reason="ETAG_MISMATCH"):
            files.upload(path, b"4", if_etag=etag)
    assert (claimed.workspace / "cond").read_bytes() == b"3"
    for start in ({"offset": 5}, {"tree": True, "mode": 0o600}, {"upload_id": "x" * 129}):
        with refused(STATUS.INVALID_ARGUMENT, "start."):
            files.stub.Upload(iter([Frame(start=exec_pb2.UploadStart(path="c", **start))]))


def test_a_target_made_while_the_bytes_arrive_is_not_overwritten(
    files: FileCalls, claimed: Sandbox
) -> None:
    def late() -> Iterator[exec_pb2.UploadFrame]:
        yield from list(frames("late", b"mine", create_only=True))[:-1]
        eventually(lambda: bool(hidden(claimed)))
        (claimed.workspace / "late").write_bytes(b"theirs")
        yield list(frames("late", b"mine"))[-1]

    with refused(STATUS.ALREADY_EXISTS):
        files.stub.Upload(late(), timeout=20)
    assert (claimed.workspace / "late").read_bytes() == b"theirs"
    assert hidden(claimed) == []


def test_replacing_breaks_hard_links_instead_of_writing_through_them(
    files: FileCalls, claimed: Sandbox
) -> None:
    other = claimed.workspace.parent / "linked-outside"
    other.write_bytes(b"outside")
    os.link(other, claimed.workspace / "hard")
    files.upload("hard", b"inside")
    assert other.read_bytes() == b"outside"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EACCES, errno.EBUSY])
def test_what_cannot_be_renamed_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = tmp_path / "busy"
    target.write_bytes(b"x" * 100_000)
    inode = target.stat().st_ino

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "rename", refuse)
    uploads = Uploads(Roots(tmp_path, (), ()))
    upload = uploads.create(exec_pb2.UploadStart(path="busy"), str(target))
    upload.append([b"new ", b"bytes"])
    entry = uploads.place(upload)
    upload.discard()
    assert entry.size == 9
    assert target.read_bytes() == b"new bytes"
    assert target.stat().st_ino == inode
    assert [each.name for each in tmp_path.iterdir()] == ["busy"]


def test_interrupted_uploads_are_kept_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "MAX_UPLOADS", 3)
    uploads = Uploads(Roots(tmp_path, (), ()))
    for name in "abcd":
        start = exec_pb2.UploadStart(path=name, upload_id=name)
        upload = uploads.create(start, str(tmp_path / name))
        upload.append([b"123"])
        upload.touched = 1e12 + ord(name)
        for each in uploads.keep(upload):
            each.discard()
    assert [uploads.state(name) for name in "abcd"] == [0, 3, 3, 3]
    assert len(list(tmp_path.iterdir())) == 3
    for each in uploads.all():
        each.touched = -1e12
    for each in uploads.expire():
        each.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stops_leaves_no_hidden_file(tmp_path: Path) -> None:
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            cut(FileCalls(channel), "kept", b"12345", "up-kept")
            assert len(hidden(server)) == 1
    assert hidden(server) == []


def test_many_transfers_at_once_stay_whole(files: FileCalls, claimed: Sandbox) -> None:
    contents = {f"many-{n}": os.urandom(500_000 + n) for n in range(20)}
    problems: list[str] = []

    def transfer(path: str, data: bytes) -> None:
        files.upload(path, data)
        if files.download(path)[0] != data:
            problems.append(path)

    threads = [threading.Thread(target=transfer, args=each) for each in contents.items()]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert problems == []
    for path, data in contents.items():
        assert (claimed.workspace / path).read_bytes() == data
