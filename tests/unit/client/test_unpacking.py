"""Archives that a sandbox sends, unpacked by pieces: what no server makes is refused."""

import io
import os
import tarfile
from pathlib import Path

import pytest

import cloister
from cloister._places import Place
from cloister._unpacking import Unpacker
from support.tar_members import END, member

pytestmark = pytest.mark.long

MIB = 1024 * 1024


class Unpacked:
    """An unpacker into a directory, with what it was told."""

    def __init__(self, path: Path, limit: int = 10 * MIB) -> None:
        self.arrived: list[str] = []
        self.place = Place(path, make=True)
        self.unpacker = Unpacker(
            self.place,
            (),
            wanted=lambda _: True,
            time=lambda member: member.seconds * 10**9,
            arrived=lambda member: self.arrived.append("/".join(member.parts)),
            made=lambda _: None,
            limit=limit,
        )

    def take(self, data: bytes, piece: int = MIB) -> None:
        try:
            for at in range(0, len(data), piece):
                self.unpacker.feed(data[at : at + piece])
            self.unpacker.end()
        finally:
            self.unpacker.close()
            self.place.close()


@pytest.mark.parametrize("piece", [1, 7, 511, 512, 513, 65_536])
def test_pieces_of_any_size(tmp_path: Path, piece: int) -> None:
    made = Unpacked(tmp_path)
    odd = os.fsdecode(b"\xff " + b"long" * 40) + "\n"
    data = member("d", type=tarfile.DIRTYPE, mode=0o755)
    data += member("d/empty") + member("d/" + odd, b"x" * 1000) + member("exact", b"y" * 512)
    data += member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd") + END
    made.take(data, piece)
    assert made.arrived == ["d/empty", "d/" + odd, "exact"]
    assert (tmp_path / "d" / odd).read_bytes() == b"x" * 1000
    assert (tmp_path / "exact").read_bytes() == b"y" * 512
    assert sorted(each.name for each in tmp_path.iterdir()) == ["d", "exact"]


def with_size(size: bytes) -> bytes:
    """A header whose size field says this, with a right checksum."""
    block = bytearray(member("f"))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "data",
    [
        member("hard", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("device", type=tarfile.CHRTYPE),
        member("block", type=tarfile.BLKTYPE),
        member("fifo", type=tarfile.FIFOTYPE),
        member("sparse", type=tarfile.GNUTYPE_SPARSE),
        member("pax", b"30 path=/etc/passwd\n", type=tarfile.XHDTYPE),
        member("global", b"30 path=/etc/passwd\n", type=tarfile.XGLTYPE),
        member("unknown", type=b"Z"),
        member("directory", b"with bytes", type=tarfile.DIRTYPE),
        member("././@LongLink", b"x" * 70_000, type=tarfile.GNUTYPE_LONGNAME),
        member("././@LongLink", b"../up\0", type=tarfile.GNUTYPE_LONGNAME) + member("f"),
        member("././@LongLink", b"/up\0", type=tarfile.GNUTYPE_LONGNAME) + member("f"),
        member("f", b"x") + b"\x01" * 512,
        END + member("f", b"x"),
        with_size(b"\xff" * 12),
        with_size(b"\x80" + b"\xff" * 11),
        with_size(b"77777777777\0"),
    ],
    ids=range(17),
)
def test_archives_that_no_server_makes_are_refused(tmp_path: Path, data: bytes) -> None:
    target = tmp_path / "target"
    with pytest.raises(cloister.DataLossError):
        Unpacked(target).take(data + END)
    assert {each.name for each in target.rglob("*")} <= {"f"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "data",
    [
        member("a/b/f", b"x"),
        member("a/b", type=tarfile.DIRTYPE),
        member("././@LongLink", b"a/" * 30_000 + b"f\0", type=tarfile.GNUTYPE_LONGNAME)
        + member("f"),
    ],
    ids=["file", "directory", "deep"],
)
def test_no_directory_is_made_that_the_sandbox_does_not_name(tmp_path: Path, data: bytes) -> None:
    """A directory for every two bytes that arrive would fill a disk's table of files."""
    with pytest.raises(cloister.DataLossError, match="not the directory that it is in"):
        Unpacked(tmp_path).take(data + END)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [0, 100, 512, 1000, 2000, 3072])
def test_an_archive_that_ends_too_early_is_refused(tmp_path: Path, left: int) -> None:
    whole = member("cut", b"x" * 2000) + END
    with pytest.raises(cloister.DataLossError, match="ends in the middle"):
        Unpacked(tmp_path).take(whole[:left])
    assert {each.name for each in tmp_path.iterdir()} <= {"cut"}


def test_the_tar_reader_of_python_agrees(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    data = member("a/b", b"content") + member("a/" + "n" * 150, b"more") + END
    made = Unpacked(tmp_path)
    made.take(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert made.arrived == archive.getnames()
