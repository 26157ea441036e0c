"""Programs whose connections are cut, fall silent, or lead to another server."""

import asyncio
import pkgutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import cloister
from cloister import _connection, _programs, _streams
from cloister._errors import call_error
from cloister._silence import Lost
from cloister._status import Details
from cloister_api.exec.v1 import exec_pb2
from support.eventually import until
from support.fake_kube import fake_kube
from support.fake_sessions import fake_sessions
from support.fault_proxy import Fault, FaultProxy, Kind, Way
from support.printed import read
from support.sandbox_server import SESSION_NAME, Sandbox, sandbox

SIGUSR1, SIGKILL, SIGTERM = 10, 9, 15
COUNT = ["seq", "1", "400000"]
COUNTED = "".join(f"{each}\n" for each in range(1, 400_001)).encode()


@pytest.mark.parametrize("kind", [Kind.RESET, Kind.CLOSE, Kind.DUPLICATE])
async def test_output_goes_on_where_a_connection_was_cut(
    session: cloister.AsyncSession, proxy: FaultProxy, kind: Kind
) -> None:
    process = await session.start(COUNT)
    told: list[bool] = []
    process.on_loss = told.append
    proxy.arm([Fault(kind, Way.DOWN, after_bytes=each) for each in (3000, 400_000, 700_001)])
    assert await read(process) == COUNTED
    assert (await process.result()).ok
    assert proxy.happened[kind] == 3
    assert told[0]
    assert not told[-1]
    # Two faults may fall on one connection.
    assert told.count(True) >= told.count(False) >= 1


@pytest.mark.parametrize("after", [1, 200, 400])
async def test_a_program_whose_start_was_cut_runs_once(
    session: cloister.AsyncSession, proxy: FaultProxy, server: Sandbox, after: int
) -> None:
    await session.stat(".")
    journal = server.workspace / f"journal-{after}"
    proxy.arm([Fault(Kind.CLOSE, Way.DOWN, after_bytes=after)])
    process = await session.start(["bash", "-c", f"echo ran >> {journal.name}; exit 5"])
    assert (await process.result()).code == 5
    assert journal.read_text() == "ran\n"
    assert proxy.happened[Kind.CLOSE] == 1


async def test_a_silent_connection_is_replaced(
    session: cloister.AsyncSession,
    proxy: FaultProxy,
    server: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = "echo a; while [ ! -e silent-go ]; do sleep 0.02; done; echo b"
    process = await session.start(["bash", "-c", script])
    assert getattr(await anext(process), "data", None) == b"a\n"
    monkeypatch.setattr(_streams, "SILENCE_SECONDS", 0.3)
    await process._follower.aclose()
    proxy.arm([Fault(Kind.STALL, Way.DOWN, after_bytes=1, seconds=3600)])
    reading = asyncio.create_task(read(process))
    await until(lambda: proxy.connections >= 3, pause=0.01)
    (server.workspace / "silent-go").touch()
    assert await reading == b"b\n"


async def test_stdin_goes_on_where_a_connection_was_cut(
    session: cloister.AsyncSession, proxy: FaultProxy
) -> None:
    async with await session.start(["cat"], stdin=True) as process:
        reading = asyncio.create_task(read(process))
        proxy.arm([Fault(Kind.RESET, Way.UP, after_bytes=each) for each in (10_000, 500_001)])
        await process.write(COUNTED[:1_000_000])
        proxy.arm([Fault(Kind.CLOSE, Way.UP, after_bytes=700_000)])
        await process.write(COUNTED[1_000_000:])
        proxy.cut()
        await process.close_stdin()
        await process.close_stdin()
        assert await reading == COUNTED
        assert proxy.happened[Kind.RESET] == 2
        assert proxy.happened[Kind.CLOSE] == 1


@pytest.mark.parametrize("work", ["write", "close", "upload"])
async def test_a_call_that_grpc_cancels_by_itself_is_repeated(
    session: cloister.AsyncSession,
    server: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    work: str,
) -> None:
    process = await session.start(["cat"], stdin=True)
    ends: list[object] = []
    name = "grpc.aio._call._StreamRequestMixin._done_writing"
    real: Any = pkgutil.resolve_name(name)

    async def end(call: Any) -> None:
        ends.append(call)
        if len(ends) == 1:
            raise OSError("the stream broke before its end was sent")
        await real(call)

    async with asyncio.timeout(20):
        if work != "write":
            await process.write(b"all of it")
        monkeypatch.setattr(name, end)
        if work == "write":
            await process.write(b"all of it")
        elif work == "upload":
            await session.write_bytes("sent", b"complete")
            assert (server.workspace / "sent").read_bytes() == b"complete"
        await process.close_stdin()
        assert await process.output() == b"all of it"
    assert len(ends) > 1


async def test_asking_how_much_was_written_survives_a_connection_that_fell_silent(
    session: cloister.AsyncSession, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_programs, "_CALL_SECONDS", 1.0)
    monkeypatch.setattr(_connection, "_INFO_SECONDS", 1.0)
    # Sooner than keepalive finds it.
    monkeypatch.setattr(_connection, "RETRY_SECONDS", 6.0)
    process = await session.start(["cat"], stdin=True)
    await process.write(b"one ")
    again = await session.attach(process.id)
    proxy.arm([Fault(Kind.STALL, Way.UP, after_bytes=1, seconds=3600)])
    await again.write(b"two")
    assert proxy.happened == {Kind.STALL: 1}
    await again.close_stdin()
    assert await process.output() == b"one two"


async def test_a_write_waits_for_another_however_long_that_takes(
    session: cloister.AsyncSession, server: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    boot_id = _connection.Connection.boot_id

    async def counted(self: _connection.Connection, channel: grpc.aio.Channel) -> str:
        nonlocal asked
        asked += 1
        return await boot_id(self, channel)

    monkeypatch.setattr(_connection.Connection, "boot_id", counted)
    monkeypatch.setattr(_programs, "_CALL_SECONDS", 0.5)
    monkeypatch.setattr(_connection, "RETRY_SECONDS", 3.0)
    script = "while [ ! -e reads-it ]; do sleep 0.02; done; cat"
    process = await session.start(["bash", "-c", script], stdin=True)
    again = await session.attach(process.id)
    # Two frames: the pipe takes one, and the other waits for the program.
    first = asyncio.create_task(process.write(b"x" * 131_072))
    assert await process.wait(0.2) is None
    second = asyncio.create_task(again.write(b"y"))
    before = asked
    await until(lambda: asked >= before + 8, pause=0.02)
    (server.workspace / "reads-it").touch()
    await asyncio.gather(first, second)
    await process.close_stdin()
    assert await process.output() == b"x" * 131_072 + b"y"


async def test_a_signal_is_sent_at_most_once(
    session: cloister.AsyncSession, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "trap 'echo caught' USR1; echo up; while :; do sleep 0.02; done"
    process = await session.start(["bash", "-c", script])
    await anext(process)
    await process.signal(SIGUSR1, scope="leader")
    assert getattr(await anext(process), "data", None) == b"caught\n"
    await process._follower.aclose()
    poll = process._poll

    async def last_answer(seconds: float) -> cloister.ProcessInfo:
        found = await poll(seconds)
        proxy.arm([Fault(Kind.CLOSE, Way.DOWN, after_bytes=1)])
        return found

    monkeypatch.setattr(process, "_poll", last_answer)
    with pytest.raises(cloister.UnavailableError, match="whether signal 10 arrived is not known"):
        await process.signal(SIGUSR1)
    monkeypatch.undo()
    proxy.arm([Fault(Kind.CLOSE, Way.DOWN, after_bytes=1)])
    await process.signal(SIGKILL)
    ended = await process.result()
    assert (ended.signal, ended.reason, ended.status) == (SIGKILL, "signalled", 137)
    assert (await process.output()).count(b"caught") <= 2
    with pytest.raises(cloister.FailedPreconditionError) as error:
        await process.signal(SIGTERM)
    assert error.value.reason == "NOT_RUNNING"
    with pytest.raises(ValueError, match="scope"):
        await process.signal(SIGTERM, scope="everybody")


@pytest.mark.parametrize(
    ("code", "text", "reason", "lost"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", "", True),
        (grpc.StatusCode.UNAVAILABLE, "this sandbox is ending", "DRAINING", True),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", "", True),
        (grpc.StatusCode.UNKNOWN, "Stream removed", "", True),
        (grpc.StatusCode.CANCELLED, "CANCELLED", "", True),
        (grpc.StatusCode.INTERNAL, "it mentions RST_STREAM", "FAULT", False),
        (grpc.StatusCode.UNKNOWN, "Unexpected <class 'TypeError'>", "", False),
        (grpc.StatusCode.NOT_FOUND, "nothing with this id", "UNKNOWN_ID", False),
    ],
)
async def test_a_lost_connection_is_told_from_the_servers_word(
    session: cloister.AsyncSession, code: grpc.StatusCode, text: str, reason: str, lost: bool
) -> None:
    assert session._connection.is_loss(call_error(code, text, Details(reason=reason))) is lost


async def test_nothing_is_begun_again_on_another_server(session: cloister.AsyncSession) -> None:
    attempts = 0

    async def attempt(_channel: Any, _alive: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise Lost("the answer was lost")

    session._connection.known_boot_id = "of a server that is gone"
    with pytest.raises(cloister.OutcomeUnknownError, match="started anew"):
        await session._connection.run(attempt, once=True)
    assert attempts == 1
    session._connection.known_boot_id = ""
    with pytest.raises(cloister.UnavailableError, match="the answer was lost"):
        await session._connection.run(attempt, once=True, repeat=False)
    assert attempts == 2
    assert session._connection.known_boot_id


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[Sandbox, str]]:
    """An exec server that can be replaced, and a kubeconfig of its cluster."""
    with (
        sandbox(tmp_path / "own") as server,
        fake_sessions(server) as sessions,
        fake_kube() as kube,
    ):
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        kube.client_config = sessions.client_config
        try:
            yield server, kube.kubeconfig(tmp_path)
        finally:
            server.process.terminate()
            server.process.wait(20)


async def test_the_outcome_is_unknown_when_the_server_was_started_anew(
    own_server: tuple[Sandbox, str],
) -> None:
    server, kubeconfig = own_server
    async with (
        cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client,
        await client.create_session("env") as session,
    ):
        process = await session.start(["sleep", "600"], stdin=True)
        shell = await session.shell("mine")
        command = await shell.run("echo ran >> journal; sleep 600")
        await until((server.workspace / "journal").exists, pause=0.01)
        # It must not hear how the old server ended it.
        await command._follower.aclose()
        await asyncio.to_thread(restart, server)
        again = await session.shell("mine")
        assert again.info.generation == 1
        for work in (
            read(process),
            process.result(),
            process.write(b"x"),
            process.signal(SIGTERM),
            process.stop(),
            process.resize(10, 10),
            command.result(),
            command.output(),
        ):
            with pytest.raises(cloister.OutcomeUnknownError, match="does not know it any more"):
                await work
        assert (server.workspace / "journal").read_text() == "ran\n"


def restart(server: Sandbox) -> None:
    """Replace the exec server by another one on the same port, of the same session."""
    server.process.terminate()
    server.process.wait(20)
    server.process = subprocess.Popen(server.command, env=server.env)
    server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
    server.claim()
    assert server.wait_for(exec_pb2.RuntimeInfo.STATE_CLAIMED, SESSION_NAME).boot_id
