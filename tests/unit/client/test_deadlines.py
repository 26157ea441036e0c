"""A sandbox that was taken over gives signs of life for ever: a client's time is its own."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cloister
from cloister import _connection, _deadline, _files, _programs, _streams, _uploading
from support.fake_sessions import FakeSessions
from support.hostile_pod import HostilePod, hostile
from support.sandbox_server import Sandbox
from support.taken_over import taken_over

pytestmark = pytest.mark.long


@pytest.fixture
def pod(server: Sandbox, sessions: FakeSessions) -> Iterator[HostilePod]:
    """What answers in the sandbox's place."""
    with hostile() as made, taken_over(server, sessions, made.add):
        yield made
        made.end()


@pytest.fixture
def session(client: cloister.Client, pod: HostilePod) -> Iterator[cloister.Session]:
    """A session in it."""
    assert pod.begins
    with client.create_session("env") as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so short that a test can wait for them."""
    for module in (_deadline, _programs):
        monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(_connection, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(_streams, "BEGIN_SECONDS", 0.1)
    monkeypatch.setattr(_programs, "_CALL_SECONDS", 0.3)
    monkeypatch.setattr(_uploading, "STALL_SECONDS", 0.3)


@pytest.mark.usefixtures("impatient")
def test_a_budget_is_kept_by_the_clients_clock(session: cloister.Session, pod: HostilePod) -> None:
    with pytest.raises(cloister.DeadlineExceededError, match=r"its 0\.1 s"):
        session.call("bash", {"command": "sleep 9"}, budget=0.1)
    assert "Cancel" in pod.asked


@pytest.mark.usefixtures("impatient")
def test_a_programs_timeout_is(session: cloister.Session, pod: HostilePod) -> None:
    process = session.start(["sleep", "9"], timeout=0.1)
    with pytest.raises(cloister.DeadlineExceededError, match="time is up"):
        next(process)
    assert process.wait(0.5) is None
    with pytest.raises(cloister.DeadlineExceededError):
        process.result()
    assert pod.asked.count("Wait") < 20


@pytest.mark.usefixtures("impatient")
def test_a_commands_timeout_is(session: cloister.Session) -> None:
    command = session.shell().run("sleep 9", timeout=0.1)
    with pytest.raises(cloister.DeadlineExceededError, match="time is up"):
        command.result()


@pytest.mark.usefixtures("impatient")
def test_what_is_never_begun_is_given_up(session: cloister.Session, pod: HostilePod) -> None:
    shell = session.shell()
    pod.begins = False
    with pytest.raises(cloister.DeadlineExceededError, match="beginning it"):
        shell.run("true")
    with pytest.raises(cloister.UnavailableError):
        session.start(["true"])


@pytest.mark.usefixtures("impatient")
def test_an_end_that_is_never_told_is_given_up(session: cloister.Session, pod: HostilePod) -> None:
    process = session.start(["sleep", "9"])
    with pytest.raises(cloister.DeadlineExceededError, match="was killed"), process:
        pass
    assert "Signal" in pod.asked
    # It answers at once each time: it must not be asked as often as it likes.
    assert pod.asked.count("Wait") < 10


def test_waiting_takes_its_time_though_the_answer_comes_too_early(
    session: cloister.Session, pod: HostilePod
) -> None:
    process = session.start(["sleep", "9"])
    assert process.wait(1.2) is None
    assert pod.asked.count("Wait") <= 6


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "unbounded",
    [
        lambda session: session.call("bash", {"command": "x"}, budget=0),
        lambda session: session.start(["x"], timeout=0).result(),
        lambda session: session.shell().run("x", timeout=0).result(),
    ],
    ids=["call", "program", "command"],
)
def test_a_bound_of_nothing_is_none(
    session: cloister.Session, unbounded: Callable[[cloister.Session], object]
) -> None:
    with cloister.deadline(1.0), pytest.raises(cloister.DeadlineExceededError, match="this block"):
        unbounded(session)


@pytest.mark.usefixtures("impatient")
def test_an_upload_that_is_not_answered_is_given_up(session: cloister.Session) -> None:
    with pytest.raises(cloister.UnavailableError, match="no more of an upload"):
        session.write_bytes("file", b"x")


def test_a_download_of_pieces_without_bytes_is_refused(session: cloister.Session) -> None:
    with pytest.raises(cloister.DataLossError, match="without bytes"):
        session.read_bytes("file")


def test_a_list_that_is_always_cut_is_given_up(
    session: cloister.Session, pod: HostilePod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "_CUTS", 3)
    with pytest.raises(cloister.UnavailableError, match="was cut 3 times"):
        session.list_files()
    assert pod.asked.count("List") == 3


def watch(session: cloister.Session) -> None:
    """Wait for a change."""
    with session.files.watch() as changes:
        next(changes)


BLOCKING: dict[str, Callable[[cloister.Session], object]] = {
    "bash": lambda session: session.bash("true"),
    "program": lambda session: next(session.start(["x"])),
    "result": lambda session: session.start(["x"]).result(),
    "attach": lambda session: session.attach("x").output(),
    "text": lambda session: list(session.attach("x").text()),
    "command": lambda session: session.shell().run("x").result(),
    "upload": lambda session: session.upload(__file__, "x"),
    "grep": lambda session: session.files.grep("x"),
    "watch": watch,
}


@pytest.mark.parametrize("name", BLOCKING)
def test_a_deadline_bounds_every_call(session: cloister.Session, name: str) -> None:
    with cloister.deadline(0.5), pytest.raises(cloister.DeadlineExceededError, match="this block"):
        BLOCKING[name](session)


ON_A_LOOP: dict[str, Callable[[cloister.AsyncSession], Any]] = {
    "bash": lambda session: session.bash("true"),
    "result": lambda session: then(session.start(["x"]), lambda made: made.result()),
    "attach": lambda session: then(session.attach("x"), lambda made: made.output()),
    "upload": lambda session: session.upload(__file__, "x"),
    "grep": lambda session: session.files.grep("x"),
    "watch": lambda session: anext(session.files.watch()),
}


async def then(first: Any, more: Callable[[Any], Any]) -> None:
    """One call, and one of what it gave."""
    await more(await first)


@pytest.mark.parametrize("name", ON_A_LOOP)
async def test_a_timeout_of_asyncio_does(kubeconfig: str, pod: HostilePod, name: str) -> None:
    assert pod.begins
    async with (
        cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client,
        await client.create_session("env") as session,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await ON_A_LOOP[name](session)


def test_the_earliest_deadline_counts_and_contexts_are_left_all_the_same(
    client: cloister.Client, sessions: FakeSessions, pod: HostilePod
) -> None:
    assert pod.begins
    with cloister.deadline(0.5), cloister.deadline(600):
        with client.create_session("env", name="mine") as session:
            with pytest.raises(cloister.DeadlineExceededError):
                session.bash("true")
            with pytest.raises(cloister.DeadlineExceededError):
                session.stat("file")
        with pytest.raises(cloister.DeadlineExceededError):
            client.list_sessions()
    assert "mine" not in sessions.sessions
    assert client.list_sessions() == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("size", [0, 1, 65_536], ids=["nothing", "a drip", "a flood"])
def test_output_without_end_keeps_nobody_beyond_the_time_of_a_command(
    session: cloister.Session, pod: HostilePod, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(_deadline, "LEFTOVER_SECONDS", 0.1 if size == 1 else 600)
    monkeypatch.setattr(_deadline, "IN_FLIGHT", 65_536)
    pod.prints = b"x" * size
    few = cloister.OutputPolicy(spool_bytes=1)
    command = session.shell().run("yes", timeout=0.1, output=few)
    with pytest.raises(cloister.DeadlineExceededError, match="time is up"):
        command.result()


async def test_what_was_kept_is_read_long_after_the_end(
    kubeconfig: str, server: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as the server keeps, more than once."""
    assert server
    monkeypatch.setattr(_deadline, "IN_FLIGHT", 0)
    policy = cloister.OutputPolicy(head_bytes=1024, tail_bytes=1024, spool_bytes=1024 * 1024)
    async with (
        cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client,
        await client.create_session("env") as session,
        await session.shell() as shell,
    ):
        command = await shell.run("head -c 1000000 /dev/zero", timeout=60, output=policy)
        until = command._follower.until
        assert until is not None
        until.at = 0.0
        assert (await command.result()).ok
        assert len(await command.output()) == 1_000_000
        assert not [each async for each in command if isinstance(each, cloister.Gap)]
        assert command.offset == 1_000_000
