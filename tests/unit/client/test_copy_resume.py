"""Copies that are cut or interrupted: they go on, and what arrives is what was sent."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloister
from cloister import _fetching
from cloister._places import Place
from cloister_sandbox.entries import etag
from support.fake_sessions import FakeSessions
from support.relay import Relay, relay
from support.sandbox_server import Sandbox

pytestmark = pytest.mark.long

MIB = 1024 * 1024


class Stopped(Exception):
    """Raised in the middle of a copy."""


class Stop:
    """Records progress, and ends the copy when so many bytes are done."""

    def __init__(self, at: int | None = None) -> None:
        self._at = at
        self.seen: list[tuple[int, int | None, int, str]] = []

    def __call__(self, done: int, total: int | None, files: int, name: str) -> None:
        self.seen.append((done, total, files, name))
        if self._at is not None and done >= self._at:
            raise Stopped


@pytest.fixture
def link(server: Sandbox, sessions: FakeSessions) -> Iterator[Relay]:
    """Stands between the client and the exec server."""
    with relay(server.port) as made:
        sessions.endpoint = f"127.0.0.1:{made.port}"
        yield made


def content_of(root: Path) -> dict[str, bytes]:
    """Every file below, by its relative path."""
    return {
        str(each.relative_to(root)): each.read_bytes() for each in root.rglob("*") if each.is_file()
    }


def make_many(root: Path, folders: int = 12, files: int = 25, size: int = 20_000) -> None:
    for folder in range(folders):
        (root / f"d{folder}").mkdir(parents=True)
        for number in range(files):
            (root / f"d{folder}" / f"f{number}").write_bytes(os.urandom(size))


def test_a_large_file_goes_on_after_every_cut(
    client: cloister.Client, server: Sandbox, link: Relay, tmp_path: Path
) -> None:
    content = os.urandom(24 * MIB)
    (tmp_path / "big").write_bytes(content)
    with client.create_session("env") as session:
        link.plan([5 * MIB, 4 * MIB, 6 * MIB])
        session.upload(tmp_path / "big", "cut-up")
        assert link.cut == 3
        # What was on the way when it was cut is sent again, and no more.
        assert link.up < 24 * MIB + 4 * 4 * MIB
        assert (server.workspace / "cut-up").read_bytes() == content
        link.plan([5 * MIB, 4 * MIB, 6 * MIB])
        session.download("cut-up", tmp_path / "back")
        assert link.cut == 3
        assert link.down < 24 * MIB + 4 * 4 * MIB
    assert (tmp_path / "back").read_bytes() == content
    assert not list(tmp_path.glob(".*.partial"))


def test_bytes_of_a_program_go_on_too(client: cloister.Client, link: Relay) -> None:
    content = os.urandom(6 * MIB)
    with client.create_session("env") as session:
        link.plan([2 * MIB, 2 * MIB])
        session.write_bytes("program", content)
        assert link.cut == 2
        link.plan([2 * MIB, 2 * MIB])
        assert session.read_bytes("program") == content
        assert link.cut == 2


def test_a_second_run_goes_on_with_a_large_upload(
    client: cloister.Client, server: Sandbox, link: Relay, tmp_path: Path
) -> None:
    content = os.urandom(20 * MIB)
    (tmp_path / "big").write_bytes(content)
    with client.create_session("env") as session, pytest.raises(Stopped):
        session.upload(tmp_path / "big", "again-up", progress=Stop(12 * MIB))
    assert not (server.workspace / "again-up").exists()
    link.plan([])
    with client.create_session("env") as session:
        session.upload(tmp_path / "big", "again-up")
    assert link.up < 16 * MIB
    assert (server.workspace / "again-up").read_bytes() == content


def test_a_second_run_goes_on_with_a_large_download(
    client: cloister.Client, server: Sandbox, link: Relay, tmp_path: Path
) -> None:
    content = os.urandom(20 * MIB)
    (server.workspace / "again-down").write_bytes(content)
    target = tmp_path / "down"
    with client.create_session("env") as session, pytest.raises(Stopped):
        session.download("again-down", target, progress=Stop(12 * MIB))
    assert not target.exists()
    (kept,) = tmp_path.glob(".down.*.partial")
    assert kept.stat().st_size >= 12 * MIB
    link.plan([])
    with client.create_session("env") as session:
        session.download("again-down", target)
    assert link.down < 12 * MIB
    assert target.read_bytes() == content
    assert not kept.exists()


def test_a_partial_download_of_another_version_is_not_gone_on_with(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    (server.workspace / "versions").write_bytes(os.urandom(8 * MIB))
    with client.create_session("env") as session:
        with pytest.raises(Stopped):
            session.download("versions", tmp_path / "v", progress=Stop(4 * MIB))
        content = os.urandom(8 * MIB)
        (server.workspace / "versions").write_bytes(content)
        session.download("versions", tmp_path / "v")
    assert (tmp_path / "v").read_bytes() == content
    assert not list(tmp_path.glob(".*.partial"))


def test_a_file_that_is_written_during_the_pause_is_sent_from_the_start(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(8 * MIB))
    times = source.stat()
    with client.create_session("env") as session:
        with pytest.raises(Stopped):
            session.upload(source, "paused", progress=Stop(4 * MIB))
        content = os.urandom(8 * MIB)
        source.write_bytes(content)
        # The same size and time: only the checksum tells that the first half is of another file.
        os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
        session.upload(source, "paused")
    assert (server.workspace / "paused").read_bytes() == content


def test_a_finished_upload_is_made_again_when_the_sandbox_changed_the_file(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    content = os.urandom(5 * MIB)
    (tmp_path / "big").write_bytes(content)
    with client.create_session("env") as session:
        session.upload(tmp_path / "big", "undone")
        (server.workspace / "undone").unlink()
        session.upload(tmp_path / "big", "undone")
        assert (server.workspace / "undone").read_bytes() == content
        (server.workspace / "undone").write_bytes(b"mine")
        session.upload(tmp_path / "big", "undone")
    assert (server.workspace / "undone").read_bytes() == content


def test_an_upload_that_only_lacked_its_end_leaves_nothing_behind(
    client: cloister.Client, server: Sandbox, link: Relay, tmp_path: Path
) -> None:
    content = os.urandom(5 * MIB)
    (tmp_path / "big").write_bytes(content)
    folder = server.workspace / "lacked"
    folder.mkdir()
    with client.create_session("env") as session:
        with pytest.raises(Stopped):
            session.upload(tmp_path / "big", "lacked/", progress=Stop(5 * MIB))
        assert [each.stat().st_size for each in folder.iterdir()] == [5 * MIB]
        link.plan([])
        session.upload(tmp_path / "big", "lacked/")
    assert link.up < MIB
    assert [each.name for each in folder.iterdir()] == ["big"]
    assert (folder / "big").read_bytes() == content


def test_a_tree_goes_on_after_cuts(
    client: cloister.Client, server: Sandbox, link: Relay, tmp_path: Path
) -> None:
    make_many(tmp_path / "many")
    (tmp_path / "many" / "big").write_bytes(os.urandom(3 * MIB))
    with client.create_session("env") as session:
        link.plan([2 * MIB, 2 * MIB, 2 * MIB])
        session.upload(tmp_path / "many", "many-up")
        assert link.cut == 3
        assert content_of(server.workspace / "many-up") == content_of(tmp_path / "many")
        link.plan([2 * MIB, MIB, MIB])
        session.download("many-up", tmp_path / "back")
        assert link.cut == 3
    assert content_of(tmp_path / "back") == content_of(tmp_path / "many")
    assert not list((tmp_path / "back").rglob(".*.partial"))


def test_a_second_run_of_a_tree_sends_only_what_is_missing(
    client: cloister.Client, server: Sandbox, link: Relay, tmp_path: Path
) -> None:
    make_many(tmp_path / "two", files=100)
    whole = 12 * 100 * 20_000
    with client.create_session("env") as session:
        with pytest.raises(Stopped):
            session.upload(tmp_path / "two", "two-up", progress=Stop(whole // 2))
        link.plan([])
        progress = Stop()
        session.upload(tmp_path / "two", "two-up", progress=progress)
        assert link.up < whole * 9 // 10
        assert progress.seen[0][:2] == (0, whole)
        assert progress.seen[-1][:3] == (whole, whole, 1200)
        with pytest.raises(Stopped):
            session.download("two-up", tmp_path / "back", progress=Stop(whole // 2))
        link.plan([])
        session.download("two-up", tmp_path / "back")
        assert link.down < whole * 9 // 10
    assert content_of(tmp_path / "back") == content_of(tmp_path / "two")
    assert content_of(server.workspace / "two-up") == content_of(tmp_path / "two")


def test_a_tree_without_proper_names_survives_a_cut(
    client: cloister.Client, server: Sandbox, link: Relay, tmp_path: Path
) -> None:
    source = tmp_path / "odd"
    make_many(source, folders=2, files=40)
    odd = os.fsdecode(b"bytes \xff\xfe")
    (source / odd).write_bytes(os.urandom(2 * MIB))
    with client.create_session("env") as session:
        session.upload(source, "odd-up")
        link.plan([MIB, MIB])
        session.download("odd-up", tmp_path / "back")
        assert link.cut == 2
    assert content_of(tmp_path / "back") == content_of(source)


def test_what_changes_in_a_stream_is_fetched_again(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    make_many(tmp_path / "live", folders=2)
    with client.create_session("env") as session:
        session.upload(tmp_path / "live", "live-up")
        changing = server.workspace / "live-up" / "d0" / "f7"

        def change(done: int, total: int | None, files: int, name: str) -> None:
            if files and changing.stat().st_size == 20_000:
                changing.write_bytes(b"newer")

        session.download("live-up", tmp_path / "back", progress=change)
    assert (tmp_path / "back" / "d0" / "f7").read_bytes() == b"newer"


def test_a_stream_that_is_always_cut_is_given_up(
    client: cloister.Client, link: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fetching, "_CUTS", 2)
    source = tmp_path / "odd"
    source.mkdir()
    (source / os.fsdecode(b"\xff")).write_bytes(os.urandom(3 * MIB))
    with client.create_session("env") as session:
        session.upload(source, "odd-cut")
        link.plan([MIB, MIB, MIB, MIB])
        with pytest.raises(cloister.UnavailableError, match="was cut 2 times"):
            session.download("odd-cut", tmp_path / "back")


def test_two_copies_of_one_file_do_not_mix(
    client: cloister.Client, server: Sandbox, tmp_path: Path
) -> None:
    content = os.urandom(4 * MIB)
    (server.workspace / "shared").write_bytes(content)
    within: list[bytes] = []

    def copy_again(done: int, total: int | None, files: int, name: str) -> None:
        if MIB <= done < 4 * MIB and not within:
            place = Place(tmp_path, make=False)
            entry = (server.workspace / "shared").stat()
            (kept,) = tmp_path.glob(".shared.*.partial")
            partial = place.begin(("shared",), etag(entry))
            within.append(os.fsencode(partial.hidden))
            assert partial.hidden != kept.name
            partial.discard()
            partial.close()
            place.close()

    with client.create_session("env") as session:
        session.download("shared", tmp_path, progress=copy_again)
    assert within
    assert (tmp_path / "shared").read_bytes() == content
    assert not list(tmp_path.glob(".*.partial"))
