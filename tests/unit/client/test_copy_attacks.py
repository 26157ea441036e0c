"""A sandbox that lies: whatever it sends, nothing is written outside the target."""

import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import cloister
from cloister import _fetching, _files
from cloister._places import checked
from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from support.fake_sessions import FakeSessions
from support.memory import grows_by_less_than
from support.sandbox_server import Sandbox
from support.taken_over import taken_over
from support.tar_members import END, member

pytestmark = pytest.mark.long

Entry = exec_pb2.Entry
MIB = 1024 * 1024


def entry(path: str, size: int = 0, *, kind: Any = Entry.TYPE_FILE, **fields: Any) -> Entry:
    return Entry(path=path, type=kind, size=size, mode=0o644, **{"etag": "e", **fields})


class Liar(exec_pb2_grpc.FilesServicer):
    """Answers whatever a test says."""

    def __init__(self) -> None:
        self.root = entry("/w", kind=Entry.TYPE_DIRECTORY)
        self.listed: list[Entry] = []
        self.content: Callable[[], Iterator[bytes]] = lambda: iter([END])
        self.damage = 0

    def Stat(self, request: Any, context: Any) -> Entry:  # noqa: N802
        return next((each for each in self.listed if each.path == request.path), self.root)

    def List(self, request: Any, context: Any) -> Iterator[Entry]:  # noqa: N802
        yield from self.listed

    def Download(self, request: Any, context: Any) -> Iterator[exec_pb2.Chunk]:  # noqa: N802
        offset = crc = 0
        found = self.Stat(request, context)
        for data in self.content():
            crc = zlib.crc32(data, crc)
            yield exec_pb2.Chunk(offset=offset, data=data, entry=None if offset else found)
            offset += len(data)
        yield exec_pb2.Chunk(
            offset=offset, crc32=crc ^ self.damage, entry=None if offset else found
        )


@pytest.fixture
def liar(server: Sandbox, sessions: FakeSessions) -> Iterator[Liar]:
    """Has the session's own certificate, as a sandbox that was taken over has."""
    made = Liar()  # type: ignore[abstract]

    def add(running: grpc.Server) -> None:
        exec_pb2_grpc.add_FilesServicer_to_server(made, running)

    with taken_over(server, sessions, add):
        yield made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A directory in one of its own: what is written beside it is seen."""
    made = tmp_path / "around" / "target"
    made.parent.mkdir()
    return made


def outside(target: Path) -> list[Path]:
    return [each for each in target.parent.iterdir() if each != target]


NAMES = [
    "/etc/cron.d/x",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    ".",
    "./x",
    "a/./x",
    "",
    "a//x",
    "a/\0/x",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(cloister.DataLossError):
        checked(name.split("/"))


@pytest.mark.parametrize("name", ["/etc/cron.d/x", "../x", "a/../../x", "a/..", ".", "./x", "a//x"])
def test_a_member_that_leads_elsewhere_ends_the_copy(
    client: cloister.Client, liar: Liar, target: Path, name: str
) -> None:
    liar.listed = [entry(f"/w/f{number}", 1) for number in range(6)]
    liar.content = lambda: iter([member("f0", b"0") + member(name, b"x") + END])
    with client.create_session("env") as session, pytest.raises(cloister.DataLossError):
        session.download("/w", target)
    assert outside(target) == []
    assert {each.name for each in target.rglob("*") if not each.name.startswith(".cl")} == {"f0"}


@pytest.mark.parametrize("path", ["/etc/passwd", "/w/../x", "/w", "/wx/y", "relative", "/w/a\0b"])
def test_a_listing_that_leads_elsewhere_ends_the_copy(
    client: cloister.Client, liar: Liar, target: Path, path: str
) -> None:
    liar.listed = [entry(path, kind=Entry.TYPE_DIRECTORY)]
    with client.create_session("env") as session, pytest.raises(cloister.DataLossError):
        session.download("/w", target)
    assert outside(target) == []
    assert not [each for each in target.rglob("*") if not each.name.startswith(".cl")]


@pytest.mark.parametrize("name", ["/w/..", "/w/.ssh", "/"])
def test_the_name_of_a_copy_is_never_a_step_up_nor_hidden(
    client: cloister.Client, liar: Liar, target: Path, name: str
) -> None:
    target.mkdir()
    liar.root = entry(name, kind=Entry.TYPE_DIRECTORY)
    with client.create_session("env") as session:
        with pytest.raises(cloister.DataLossError, match="calls a directory"):
            session.download(".", target)
        session.download("/.asked", target)
    assert outside(target) == []
    assert [each.name for each in target.iterdir()] == [".asked"]


def test_what_no_message_should_say_is_no_error_of_another_kind(
    client: cloister.Client, liar: Liar
) -> None:
    liar.root = entry("/w/f", 1, kind=77)
    liar.root.mtime.seconds, liar.root.mtime.nanos = 2**62, -5
    with client.create_session("env") as session:
        found = session.stat("/w/f")
    assert (found.type, found.modified_at.year) == ("unknown", 9999)


def test_an_etag_is_no_part_of_a_path(client: cloister.Client, liar: Liar, target: Path) -> None:
    liar.root = entry("/w/f", 2 * MIB, etag="/../../../evil")
    liar.content = lambda: iter([b"x" * MIB, b"y" * MIB])
    with client.create_session("env") as session:
        session.download("/w/f", target)
    assert target.read_bytes() == b"x" * MIB + b"y" * MIB
    assert outside(target) == []


def test_links_of_the_target_are_not_followed(
    client: cloister.Client, liar: Liar, target: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "home"
    secret.mkdir()
    (secret / "authorized_keys").write_text("mine")
    target.mkdir()
    (target / "w").mkdir()
    (target / "w" / "link").symlink_to(secret)
    (target / "w" / "file").symlink_to(secret / "authorized_keys")
    streamed = [entry(f"/w/link/f{number}", 1) for number in range(6)]
    with client.create_session("env") as session:
        for listed in (streamed, [entry("/w/link/authorized_keys", 1)]):
            liar.listed = [entry("/w/link", kind=Entry.TYPE_DIRECTORY), *listed]
            liar.content = lambda: iter([member("authorized_keys", b"x") + END])
            with pytest.raises(cloister.LocalFileError, match="cannot write"):
                session.download("/w", target)
        liar.listed = [entry("/w/file", 1)]
        liar.content = lambda: iter([b"x"])
        session.download("/w", target)
    assert (secret / "authorized_keys").read_text() == "mine"
    assert [each.name for each in secret.iterdir()] == ["authorized_keys"]
    assert not (target / "w" / "file").is_symlink()


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * MIB


@pytest.mark.timeout(60)
def test_an_endless_file_ends(client: cloister.Client, liar: Liar, target: Path) -> None:
    liar.root = entry("/w/f", 3 * MIB)
    liar.content = endless
    with client.create_session("env") as session, pytest.raises(cloister.DataLossError):
        session.download("/w/f", target)
    assert not target.exists()
    assert outside(target) == []


def many_members() -> Iterator[bytes]:
    number = 0
    while True:
        number += 1
        yield member(f"more{number}", b"x" * MIB)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("members", [True, False])
def test_an_endless_stream_ends(
    client: cloister.Client,
    liar: Liar,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: bool,
) -> None:
    monkeypatch.setattr(_fetching, "_GROWTH", 4 * MIB)
    liar.listed = [entry(f"/w/f{number}", 1) for number in range(6)]
    liar.content = many_members if members else lambda: iter([member("f0"), *[END] * 20_000])
    with client.create_session("env") as session, pytest.raises(cloister.DataLossError):
        session.download("/w", target)
    written = sum(each.stat().st_size for each in target.rglob("*") if each.is_file())
    assert written <= 5 * MIB
    assert not list(target.rglob(".*.partial"))


def test_an_endless_listing_ends(
    client: cloister.Client, liar: Liar, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "MAX_ENTRIES", 1000)
    liar.listed = [entry(f"/w/f{number}") for number in range(1001)]
    with (
        client.create_session("env") as session,
        pytest.raises(cloister.FailedPreconditionError, match="more than 1000 entries"),
    ):
        session.download("/w", target)


def test_a_listing_of_endless_names_ends(
    client: cloister.Client, liar: Liar, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "MAX_LISTED", MIB)
    liar.listed = [entry(f"/w/{number}{'f' * 100_000}") for number in range(11)]
    with (
        client.create_session("env") as session,
        pytest.raises(cloister.FailedPreconditionError, match="more than 1048576 bytes"),
    ):
        session.download("/w", target)


def test_a_file_that_claims_to_be_two_things(
    client: cloister.Client, liar: Liar, target: Path
) -> None:
    liar.listed = [entry(f"/w/f{number}", 1) for number in range(6)]
    liar.content = lambda: iter([member("f0", b"x") + member("f0/inside", b"x") + END])
    with client.create_session("env") as session, pytest.raises(cloister.LocalFileError):
        session.download("/w", target)
    assert (target / "f0").read_bytes() == b"x"


def test_dangerous_modes_and_times_are_tamed(
    client: cloister.Client, liar: Liar, target: Path
) -> None:
    liar.root = entry("/w/f", 1)
    liar.root.mode = 0o7777
    liar.root.mtime.seconds = 2**62
    liar.content = lambda: iter([b"x"])
    with client.create_session("env") as session:
        session.download("/w/f", target)
    assert target.stat().st_mode & 0o7777 == 0o777


def test_wrong_checksums_are_noticed(client: cloister.Client, liar: Liar, target: Path) -> None:
    liar.root = entry("/w/f", 3)
    liar.content = lambda: iter([b"abc"])
    liar.damage = 1
    with (
        client.create_session("env") as session,
        pytest.raises(cloister.DataLossError, match="damaged"),
    ):
        session.download("/w/f", target)
    assert not target.exists()


def test_no_directory_is_made_for_a_listed_file_alone(
    client: cloister.Client, liar: Liar, target: Path
) -> None:
    liar.listed = [entry("/w/a/b/c/f", 1)]
    liar.content = lambda: iter([b"x"])
    with (
        client.create_session("env") as session,
        pytest.raises(cloister.DataLossError, match="not the directory that it is in"),
    ):
        session.download("/w", target)
    assert not [each for each in target.iterdir() if each.is_dir()]


def test_a_file_below_many_directories_that_are_not_listed_takes_no_memory(
    client: cloister.Client, liar: Liar, target: Path
) -> None:
    """Each directory above it would be kept by its whole name."""
    liar.listed = [entry("/w/" + "a/" * 30_000 + "f", 1)]
    with client.create_session("env") as session:
        with (
            grows_by_less_than(os.getpid(), 30 * MIB),
            pytest.raises(cloister.DataLossError, match="not the directory that it is in"),
        ):
            session.download("/w", target)
        liar.listed = [entry("/w/" + "a/" * MIB, kind=Entry.TYPE_DIRECTORY)]
        with pytest.raises(cloister.DataLossError, match="a path of 2097155 characters") as error:
            session.download("/w", target)
    assert len(str(error.value)) < 500


def test_directories_without_end_that_are_not_listed_end(
    client: cloister.Client, liar: Liar, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fetching, "_UNLISTED", 100 * 1024)
    liar.listed = [entry(f"/w/f{number}", 1) for number in range(6)]

    def directories() -> Iterator[bytes]:
        for number in range(10_000):
            yield member(f"d{number}", type=tarfile.DIRTYPE, mode=0o755)

    liar.content = directories
    with (
        client.create_session("env") as session,
        pytest.raises(cloister.DataLossError, match="more directories that it does not list"),
    ):
        session.download("/w", target)
    assert len([each for each in target.iterdir() if each.is_dir()]) <= 200
