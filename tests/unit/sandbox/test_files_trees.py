"""Trees in and out, as tar streams that stay inside."""

import io
import os
import stat
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import unpacking
from cloister_sandbox.errors import WrongState
from support.file_calls import FileCalls, eventually, frames
from support.sandbox_server import Sandbox, refused

STATUS = grpc.StatusCode
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[FileCalls]:
    with claimed.worker() as channel:
        yield FileCalls(channel)


def member(name: str, data: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_tree_comes_back_as_it_was(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace / "tree-out"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "big").write_bytes(os.urandom(1_000_001))
    (root / "sub" / ("long" * 60)).write_text("long name")
    (root / "sub" / "run").write_text("#!/bin/sh\n")
    (root / "sub" / "run").chmod(0o755)
    (root / "link").symlink_to("/etc/passwd")
    odd = os.fsencode(root) + b"/line\nbreak-\xff\xfe"
    with open(odd, "wb") as file:  # noqa: PTH123 - a name that is no text
        file.write(b"odd")
    os.mkfifo(root / "pipe")
    data, entry = files.download("tree-out", tree=True)
    assert entry.type == exec_pb2.Entry.TYPE_DIRECTORY
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {each.name: each for each in tar.getmembers()}
        assert tar.extractfile("big").read() == (root / "big").read_bytes()  # type: ignore[union-attr]
    assert sorted(members, key=os.fsencode) == sorted(
        [
            "big",
            os.fsdecode(b"line\nbreak-\xff\xfe"),
            "link",
            "sub",
            "sub/empty",
            "sub/run",
            "sub/" + "long" * 60,
        ],
        key=os.fsencode,
    )
    assert members["link"].linkname == "/etc/passwd"
    assert members["sub/run"].mode == 0o755

    inside = [each for each in members.values() if each.name != "link"]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        copies = [
            (each, tar.extractfile(each).read() if each.isreg() else b"")  # type: ignore[union-attr]
            for each in inside
        ]
    back = files.upload("tree-in", archive(*copies), tree=True)
    assert (back.path, back.type) == (
        str(claimed.workspace / "tree-in"),
        exec_pb2.Entry.TYPE_DIRECTORY,
    )
    target = claimed.workspace / "tree-in"
    assert (target / "big").read_bytes() == (root / "big").read_bytes()
    assert stat.S_IMODE((target / "sub" / "run").stat().st_mode) == 0o755
    assert (target / "sub" / "run").stat().st_mtime == int((root / "sub/run").stat().st_mtime)
    assert (target / "sub" / "empty").is_dir()
    with open(os.fsencode(target) + b"/line\nbreak-\xff\xfe", "rb") as file:  # noqa: PTH123
        assert file.read() == b"odd"


def test_an_archive_goes_into_what_is_there(files: FileCalls, claimed: Sandbox) -> None:
    root = claimed.workspace / "merged"
    (root / "d").mkdir(parents=True)
    (root / "d" / "kept").write_text("kept")
    (root / "d" / "old").write_text("old")
    outside = claimed.workspace.parent / "merge-outside"
    outside.write_text("outside")
    os.link(outside, root / "hard")
    (root / "soft").symlink_to(outside)
    data = archive(
        member("./d/old", b"new", mode=0o4755),
        member("hard", b"in"),
        member("soft", b"in"),
        member("d/up", type=tarfile.SYMTYPE, linkname="../hard"),
        member("d/same", type=tarfile.LNKTYPE, linkname="d/old"),
        member("deep/er/file", b"x"),
    )
    files.upload("merged", data, tree=True)
    assert (root / "d/kept").read_text() == "kept"
    assert (root / "d/old").read_text() == "new"
    assert stat.S_IMODE((root / "d/old").stat().st_mode) == 0o755, "no setuid bit"
    assert (root / "d/same").stat().st_ino == (root / "d/old").stat().st_ino
    assert (root / "d/up").read_text() == "in"
    assert not (root / "soft").is_symlink()
    assert outside.read_text() == "outside"
    assert not list(root.rglob(".cloister*"))


REFUSED: list[tuple[str, list[Member]]] = [
    ("absolute", [member("/tmp/evil", b"x")]),
    ("parent", [member("../evil", b"x")]),
    ("parent-inside", [member("a/../../evil", b"x")]),
    ("absolute-link", [member("l", type=tarfile.SYMTYPE, linkname="/etc")]),
    ("climbing-link", [member("l", type=tarfile.SYMTYPE, linkname="../evil")]),
    ("climbing-deep", [member("a/l", type=tarfile.SYMTYPE, linkname="../../evil")]),
    (
        "through-a-link",
        [
            member("dot", type=tarfile.SYMTYPE, linkname="."),
            member("l", type=tarfile.SYMTYPE, linkname="dot/../evil"),
        ],
    ),
    ("hard-link", [member("l", type=tarfile.LNKTYPE, linkname="../evil")]),
    ("hard-link-absolute", [member("l", type=tarfile.LNKTYPE, linkname="/etc/passwd")]),
    ("fifo", [member("p", type=tarfile.FIFOTYPE)]),
    ("character-device", [member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)]),
    ("block-device", [member("disk", type=tarfile.BLKTYPE, devmajor=8)]),
    ("too-deep", [member("d/" * 300 + "f", b"x")]),
]


@pytest.mark.parametrize(
    "members", [each for _, each in REFUSED], ids=[name for name, _ in REFUSED]
)
def test_a_bad_member_refuses_the_whole_archive(
    files: FileCalls, claimed: Sandbox, members: list[Member]
) -> None:
    data = archive(member("good", b"x"), *members)
    with refused(STATUS.FAILED_PRECONDITION, reason="MEMBER_REFUSED"):
        files.upload("bad-tree/in", data, tree=True, upload_id="")
    assert not (claimed.workspace / "bad-tree").exists()
    assert not list(claimed.workspace.parent.rglob("evil"))


@pytest.mark.parametrize("data", [b"x" * 600, b"\x1f\x8b" + b"x" * 700], ids=["text", "gzip"])
def test_what_is_no_archive_is_refused(files: FileCalls, data: bytes) -> None:
    with refused(STATUS.FAILED_PRECONDITION, reason="BAD_ARCHIVE"):
        files.upload("no-tree", data, tree=True)


def extended(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header, of one member or of all that come."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + b"\0" * (-len(body) % tarfile.BLOCKSIZE)


def record(key: str, size: int) -> bytes:
    """A record of so many bytes."""
    begin = f"{size} {key}=".encode()
    return begin + b"x" * (size - len(begin) - 1) + b"\n"


EMPTY = tarfile.TarInfo("f").tobuf(tarfile.USTAR_FORMAT)
DAMAGED = {
    "overlapping": b"5 aa\n" * 20_000 + b"9 k=vvv=\n",
    "digits": record("path", 1000) + b"1009 path=" + b"1" * 998 + b"\n",
    "too-long": record("path", 1000)[:-1],
    "too-short": b"3 path=x\n",
    "no-key": b"6 =xx\n",
    "no-number": b"path=x\n",
    "huge": record("path", 200_000),
    "many": b"",
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED.keys())
def test_extended_headers_that_no_archive_has_are_refused(files: FileCalls, body: bytes) -> None:
    """Of some the tar reader would make a copy for each byte, or take the square of their time."""
    headers = extended(body)
    if not body:
        headers = b"".join(extended(record(f"key{each}", 100_000)) for each in range(10))
    with refused(STATUS.FAILED_PRECONDITION, reason="BAD_ARCHIVE"):
        files.upload("headers", headers + EMPTY + b"\0" * 1024, tree=True)


def test_what_is_read_of_a_sparse_member_hides_no_header(files: FileCalls) -> None:
    """Its data looks like the header of a long name, whose body is not looked through."""
    link, _ = member("link", type=tarfile.SYMTYPE, linkname="f")
    data = bytearray(b"0\n".ljust(tarfile.BLOCKSIZE, b"\0"))
    data[156:157] = tarfile.GNUTYPE_LONGNAME
    sparse = extended(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n9 size=0\n")
    begin = sparse + link.tobuf(tarfile.USTAR_FORMAT) + bytes(data)
    whole = begin + extended(b"1" * 1000) + EMPTY + b"\0" * 1024
    with refused(STATUS.FAILED_PRECONDITION, "link: only files", "MEMBER_REFUSED"):
        files.upload("sparse", whole, tree=True)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_look_like_headers_are_names(files: FileCalls, format_: int) -> None:
    out = io.BytesIO()
    names = [f"{kind * 240}/{kind * 240}" for kind in "xgXLK"] + ["9" * 255]
    with tarfile.open(fileobj=out, mode="w", format=format_) as tar:
        for each in names:
            tar.addfile(member(each)[0])
    files.upload("look-alikes", out.getvalue(), tree=True)
    data, _ = files.download("look-alikes", tree=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert set(names) <= set(tar.getnames())


def test_headers_for_all_members_are_not_gathered(tmp_path: Path) -> None:
    """They can be as long as the archive, and tools may change what was uploaded."""
    path = tmp_path / "archive"
    with path.open("wb") as out:
        for number in range(200):
            out.write(extended(record(f"key{number}", 100_000), tarfile.XGLTYPE) + EMPTY)
        out.write(b"\0" * 1024)
    with path.open("rb") as file:
        tracemalloc.start()
        unpacking.check(file.fileno(), path.stat().st_size, lambda: None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 5_000_000


def test_an_archive_that_ends_early_is_refused(files: FileCalls, claimed: Sandbox) -> None:
    data = archive(member("one", b"1"), member("two", b"2" * 5000))
    with refused(STATUS.FAILED_PRECONDITION, reason="BAD_ARCHIVE"):
        files.upload("early", data[:3000], tree=True)
    assert not (claimed.workspace / "early" / "one").exists()


def test_a_tree_does_not_replace_a_file_nor_leave_a_read_only_place(
    files: FileCalls, claimed: Sandbox
) -> None:
    (claimed.workspace / "a-file").touch()
    with refused(STATUS.FAILED_PRECONDITION):
        files.upload("a-file", archive(member("f", b"x")), tree=True)
    uploads = claimed.workspace.parent / "extra" / "uploads" / "in"
    for path in (str(uploads), "/etc/in", "../in"):
        with refused(STATUS.PERMISSION_DENIED, reason="PATH_REFUSED"):
            files.upload(path, archive(member("f", b"x")), tree=True)


def test_links_before_the_upload_are_not_followed(files: FileCalls, claimed: Sandbox) -> None:
    outside = claimed.workspace.parent / "tree-outside"
    outside.mkdir()
    (claimed.workspace / "trap").mkdir()
    (claimed.workspace / "trap" / "d").symlink_to(outside)
    with refused(STATUS.FAILED_PRECONDITION):
        files.upload("trap", archive(member("d/f", b"x")), tree=True)
    assert list(outside.iterdir()) == []


def test_a_huge_header_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("name")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    path = tmp_path / "archive"
    with path.open("w+b") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 34)
        with pytest.raises(WrongState, match="header is too large"):
            unpacking.check(file.fileno(), 1 << 34, lambda: None)


def test_headers_that_follow_each_other_without_a_member(files: FileCalls) -> None:
    info = tarfile.TarInfo("name")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    with refused(STATUS.FAILED_PRECONDITION, reason="BAD_ARCHIVE"):
        files.upload("headers", (info.tobuf() + b"x".ljust(512, b"\0")) * 3000, tree=True)


@pytest.mark.long
def test_a_tree_stops_when_its_caller_leaves_and_goes_on_with_the_next(
    files: FileCalls, claimed: Sandbox
) -> None:
    count = 20_000
    root, names = claimed.workspace / "left", [f"d{number % 7}/{number}" for number in range(count)]
    data = archive(*(member(name, name.encode()) for name in names))
    call = files.stub.Upload.future(frames("left", data, tree=True, upload_id="left"), timeout=60)
    eventually(lambda: (root / names[100]).exists())
    call.cancel()
    # A mark on what was written; a member that is written twice loses it.
    (root / names[0]).write_text("changed since")

    def written() -> int:
        return sum(len(each[2]) for each in os.walk(root))

    def stopped() -> bool:
        before = written()
        files.stat("left")
        time.sleep(0.2)
        return written() == before

    eventually(stopped)
    assert 100 < written() < count
    assert files.offset("left") == len(data)
    for _ in range(2):
        entry = files.upload("left", data, tree=True, upload_id="left", skip=len(data))
        assert entry.path == str(root)
        assert {name for name in names if (root / name).read_text() != name} == {names[0]}
    assert written() == count
    assert not list(claimed.workspace.rglob(".cloister*"))


def test_a_tree_that_is_no_directory_is_not_downloaded(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "flat").touch()
    with refused(STATUS.FAILED_PRECONDITION):
        files.download("flat", tree=True)
    with refused(STATUS.NOT_FOUND):
        files.download("nowhere", tree=True)
    with refused(STATUS.PERMISSION_DENIED):
        files.download("/etc", tree=True)


def test_an_empty_directory_is_an_empty_archive(files: FileCalls, claimed: Sandbox) -> None:
    (claimed.workspace / "hollow").mkdir()
    data, _ = files.download("hollow", tree=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmembers() == []
    files.upload("hollow2", data, tree=True)
    assert (claimed.workspace / "hollow2").is_dir()
