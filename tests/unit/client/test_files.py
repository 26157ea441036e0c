"""Files for programs: text with etags, searches, moves, removals and watches."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

import cloister
from cloister import Replacement, _workspace
from support.fault_proxy import Fault, FaultProxy, Kind, Way
from support.sandbox_server import Sandbox


@pytest.fixture
def session(client: cloister.Client) -> Iterator[cloister.Session]:
    with client.create_session("env") as made:
        yield made


def test_text_is_read_and_edited_under_its_etag(session: cloister.Session) -> None:
    files = session.files
    session.write_bytes("poem", "eins\nzwei\ndreiß\n".encode())
    found = files.read_text("poem", first=2, last=2)
    assert (found.text.strip(), found.total_lines, found.size) == ("zwei", 3, 17)
    assert not found.truncated
    assert session.stat("poem").etag == found.etag
    made = files.edit(
        "poem", [Replacement("eins", "one"), Replacement("e", "E", True)], if_etag=found.etag
    )
    assert made.counts == (1, 3)
    assert "+onE" in made.diff
    assert made.entry.etag != found.etag
    with pytest.raises(cloister.FailedPreconditionError) as error:
        files.edit("poem", [Replacement("x", "y")], if_etag=found.etag)
    assert error.value.reason == "ETAG_MISMATCH"
    (violation,) = error.value.violations
    assert (violation.type, violation.subject, violation.limit) == ("ETAG_MISMATCH", "poem", None)


def test_a_file_is_written_only_where_it_may_be(session: cloister.Session) -> None:
    made = session.write_bytes("mine", b"1", create_only=True)
    with pytest.raises(cloister.AlreadyExistsError) as error:
        session.write_bytes("mine", b"2", create_only=True)
    assert error.value.resource == cloister.Resource("file", "mine")
    session.write_bytes("mine", b"3", if_etag=made.etag)
    with pytest.raises(cloister.FailedPreconditionError) as stale:
        session.write_bytes("mine", b"4", if_etag=made.etag)
    assert stale.value.reason == "ETAG_MISMATCH"
    assert session.read("mine", byte_range=[0, 1]).text == "3"


def test_some_bytes_of_a_file(session: cloister.Session) -> None:
    content = bytes(range(256)) * 8192
    session.write_bytes("bytes", content)
    assert session.read_bytes("bytes", first=3, count=5) == content[3:8]
    assert session.read_bytes("bytes", count=1_500_000, limit=1_500_000) == content[:1_500_000]
    assert session.read_bytes("bytes", first=2_000_000) == content[2_000_000:]
    assert session.read_bytes("bytes", first=len(content) - 2, count=9) == content[-2:]
    for first in (len(content), len(content) + 7, 2**64 - 1):
        assert session.read_bytes("bytes", first=first, count=3) == b""
    with pytest.raises(cloister.FailedPreconditionError, match="more than 4 bytes"):
        session.read_bytes("bytes", first=3, count=5, limit=4)


def test_the_same_edit_is_made_once(session: cloister.Session) -> None:
    session.write_bytes("count", b"a")
    change = [Replacement("a", "aa")]
    first = session.files.edit("count", change, request_id="once")
    assert session.files.edit("count", change, request_id="once") == first
    assert session.read_bytes("count") == b"aa"
    with pytest.raises(cloister.AlreadyExistsError) as error:
        session.files.edit("count", [Replacement("a", "b")], request_id="once")
    assert error.value.resource == cloister.Resource("call", "once")


def test_what_is_missing_is_a_value_of_the_error(session: cloister.Session) -> None:
    with pytest.raises(cloister.NotFoundError) as error:
        session.files.read_text("none")
    assert error.value.resource == cloister.Resource("file", "none")
    with pytest.raises(cloister.NotFoundError) as error:
        session.attach("nobody")
    assert error.value.resource == cloister.Resource("process", "nobody")


def test_files_are_found_by_name_and_content(session: cloister.Session) -> None:
    for number in range(3):
        session.write_bytes(f"tree/{number}.py", b"one\nTODO two\nthree\n")
    session.write_bytes("tree/other.txt", b"TODO\n")
    found = session.files.glob("**/*.py", "tree", limit=2)
    assert (len(found.entries), found.total) == (2, 3)
    assert {each.type for each in found.entries} == {"file"}
    grep = session.files.grep("todo", "tree", glob="*.py", ignore_case=True, context_lines=1)
    assert (grep.matches, grep.files, grep.truncated, grep.warnings) == (3, 3, False, ())
    assert [(each.number, each.text, each.is_context) for each in grep.lines[:3]] == [
        (1, "one", True),
        (2, "TODO two", False),
        (3, "three", True),
    ]
    with pytest.raises(cloister.InvalidArgumentError) as error:
        session.files.grep("(")
    assert error.value.field == "pattern"


def test_moves_and_removals(session: cloister.Session) -> None:
    files = session.files
    session.write_bytes("from/a", b"a")
    session.write_bytes("there", b"b")
    with pytest.raises(cloister.AlreadyExistsError) as error:
        files.move("from/a", "there")
    assert error.value.resource is not None
    assert error.value.resource.type == "file"
    assert files.move("from/a", "there", overwrite=True).path.endswith("/there")
    assert session.read_bytes("there") == b"a"
    session.write_bytes("from/b", b"b")
    with pytest.raises(cloister.FailedPreconditionError, match="not empty"):
        files.remove("from")
    files.remove("from", recursive=True)
    with pytest.raises(cloister.NotFoundError):
        files.remove("from", recursive=True)


def test_a_watch_tells_what_changes(session: cloister.Session, server: Sandbox) -> None:
    session.write_bytes("seen/first", b"1")
    with session.files.watch("seen", recursive=True) as changes:
        (server.workspace / "seen" / "second").write_text("2")
        change = next(changes)
        assert (change.type, change.path) == (
            "created",
            str(server.workspace / "seen" / "second"),
        )
        session.files.remove("seen", recursive=True)
        rest = list(changes)
    assert {each.type for each in rest} <= {"created", "modified", "removed"}


def test_a_runtime_says_what_it_is(session: cloister.Session) -> None:
    info = session.server_info()
    assert info.boot_id
    assert "files.watch" in info.capabilities
    session.bash("true")
    activity = session.activity()
    assert activity.running_calls >= 0
    assert activity.active_seconds > 0


@pytest.fixture
async def broken(proxy: FaultProxy, kubeconfig: str) -> AsyncIterator[cloister.AsyncSession]:
    """A session whose connections can be broken."""
    async with (
        cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client,
        await client.create_session("env") as made,
    ):
        yield made


async def test_some_bytes_survive_a_loss(
    broken: cloister.AsyncSession, proxy: FaultProxy, server: Sandbox
) -> None:
    content = bytes(range(256)) * 40_000
    (server.workspace / "large").write_bytes(content)
    await broken.server_info()
    proxy.arm([Fault(Kind.RESET, Way.DOWN, 3_000_000)])
    assert await broken.read_bytes("large", first=77, count=9_000_000) == content[77:9_000_077]
    assert not proxy._due


async def test_a_watch_says_that_it_may_have_missed_something(
    broken: cloister.AsyncSession, proxy: FaultProxy, server: Sandbox
) -> None:
    await broken.write_bytes("kept/a", b"")
    async with broken.files.watch("kept") as changes:
        proxy.arm([Fault(Kind.RESET, Way.DOWN, 0)])
        (server.workspace / "kept" / "b").write_text("")
        found = await anext(changes)
        while found.type != "overflow":
            found = await anext(changes)
        (server.workspace / "kept" / "c").write_text("")
        while not (await anext(changes)).path.endswith("/c"):
            pass


async def test_a_watch_whose_wait_was_cancelled_goes_on(
    broken: cloister.AsyncSession, server: Sandbox
) -> None:
    await broken.write_bytes("again/a", b"")
    async with broken.files.watch("again") as changes:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(changes)
        assert (await anext(changes)).type == "overflow"
        (server.workspace / "again" / "b").write_text("")
        assert (await anext(changes)).path.endswith("/b")


async def test_a_removal_whose_answer_was_lost_is_a_success(
    broken: cloister.AsyncSession, proxy: FaultProxy, server: Sandbox
) -> None:
    await broken.write_bytes("gone", b"")
    proxy.arm([Fault(Kind.RESET, Way.DOWN, 1)])
    await broken.files.remove("gone")
    assert not (server.workspace / "gone").exists()


async def test_more_lines_than_memory_has_room_for_are_refused(
    broken: cloister.AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_workspace, "_GREP_BYTES", 1000)
    await broken.write_bytes("long", b"x\n" * 100)
    with pytest.raises(cloister.FailedPreconditionError, match="search for less"):
        await broken.files.grep("x", "long")
