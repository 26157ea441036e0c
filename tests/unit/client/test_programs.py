"""Programs: followed through lost connections, written to, signalled, stopped."""

import asyncio
import functools
import pkgutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import cloister
from cloister import _connection, _programs, _streams
from cloister._errors import call_error
from cloister._programs import AsyncProcess
from cloister._silence import Lost
from cloister._status import Details
from cloister._streams import Follower
from cloister_api.exec.v1 import exec_pb2
from support.eventually import until
from support.fake_kube import fake_kube
from support.fake_sessions import fake_sessions
from support.fault_proxy import Fault, FaultProxy, Kind, Way
from support.sandbox_server import SESSION_NAME, Sandbox, sandbox

SIGUSR1, SIGKILL, SIGTERM = 10, 9, 15
COUNT = ["seq", "1", "400000"]
COUNTED = "".join(f"{each}\n" for each in range(1, 400_001)).encode()


@pytest.fixture
async def session(proxy: FaultProxy, kubeconfig: str) -> AsyncIterator[cloister.AsyncSession]:
    """A session whose connections can be broken; what is left running in it is ended."""
    async with (
        cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client,
        await client.create_session("env") as made,
    ):
        yield made
        proxy.arm(())
        for each in await made.processes():
            process = await made.attach(each.id)
            if each.running:
                await process.stop()
            await process.release()


async def read(process: AsyncProcess) -> bytes:
    """Everything that comes from it until its end."""
    events = [each async for each in process]
    return b"".join(each.data for each in events if isinstance(each, cloister.Output))


async def test_a_program_prints_and_ends(session: cloister.AsyncSession) -> None:
    script = "echo out $WHO; pwd; echo err >&2; exit 7"
    process = await session.start(["bash", "-c", script], cwd="/usr", env={"WHO": "me"})
    ended = await process.result()
    assert (ended.code, ended.signal, ended.reason, ended.status) == (7, None, "exited", 7)
    assert not ended.ok
    assert await process.output("stdout") == b"out me\n/usr\n"
    assert await process.output("stderr") == b"err\n"
    assert process.offset == 0
    seen = [each async for each in process if isinstance(each, cloister.Output)]
    assert {each.stream for each in seen} == {"stdout", "stderr"}
    assert (seen[0].offset, seen[-1].end, process.offset) == (0, 16, 16)
    assert [each async for each in process] == []
    with pytest.raises(cloister.FailedPreconditionError, match="more than 3 bytes"):
        await process.output(limit=3)


@pytest.mark.parametrize(
    ("argv", "cwd", "kind"),
    [
        (["nothing-of-this-name"], "", "not_found"),
        (["/etc/passwd"], "", "permission_denied"),
        (["true"], "/nowhere", "bad_cwd"),
    ],
)
async def test_a_program_that_cannot_be_started(
    session: cloister.AsyncSession, argv: list[str], cwd: str, kind: str
) -> None:
    with pytest.raises(cloister.StartFailedError) as error:
        await session.start(argv, cwd=cwd, process_id="failed")
    assert error.value.kind == kind
    again = await session.attach("failed")
    for work in (again.result(), read(again)):
        with pytest.raises(cloister.StartFailedError):
            await work
    await again.release()


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


class Fake:
    """A call that answers with these events and then ends."""

    def __init__(self, *events: exec_pb2.OutputEvent) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[exec_pb2.OutputEvent]:
        for each in self._events:
            yield each

    def cancel(self) -> None:
        """It has ended."""


def printed(offset: int, data: bytes) -> exec_pb2.OutputEvent:
    output = exec_pb2.Output(stream=exec_pb2.Output.STREAM_STDOUT, offset=offset, data=data)
    return exec_pb2.OutputEvent(output=output)


STARTED = exec_pb2.OutputEvent(started=exec_pb2.Started(id="x"))
EXITED = exec_pb2.OutputEvent(exited=exec_pb2.ExitInfo(code=4))


async def test_a_stream_without_an_outcome_says_nothing(session: cloister.AsyncSession) -> None:
    asked: list[int] = []
    calls = [Fake(), Fake(STARTED, printed(0, b"ab")), Fake(STARTED), Fake(STARTED, EXITED)]

    def attach(_channel: grpc.aio.Channel, offset: int) -> Fake:
        asked.append(offset)
        return calls.pop(0)

    follower = Follower(session._connection, None, attach)
    ended = await follower.finish()
    assert (ended.code, asked) == (4, [0, 0, 2, 2])


@pytest.mark.parametrize("offset", [0, 1, 3])
async def test_a_wrong_offset_is_an_error(session: cloister.AsyncSession, offset: int) -> None:
    calls = [Fake(STARTED, printed(0, b"ab"), printed(offset, b"cd"), EXITED)]
    follower = Follower(session._connection, None, lambda _channel, _offset: calls.pop(0))
    with pytest.raises(cloister.DataLossError, match=f"at offset {offset}, and not at 2"):
        await follower.finish()


async def test_what_is_not_kept_is_told(session: cloister.AsyncSession) -> None:
    few = cloister.OutputPolicy(head_bytes=8, tail_bytes=8, spool_bytes=8)
    process = await session.start(["bash", "-c", "head -c 3000000 /dev/zero; echo end"], output=few)
    await process.result()
    events = [each async for each in process]
    gaps = [each for each in events if isinstance(each, cloister.Gap)]
    kept = sum(len(each.data) for each in events if isinstance(each, cloister.Output))
    assert gaps
    assert kept + sum(each.end - each.start for each in gaps) == 3_000_004
    with pytest.raises(cloister.DataLossError, match="were not kept"):
        await process.output()
    again = await session.attach(process.id)
    assert "bytes were not kept]" in "".join([each async for each in again.text()])
    with pytest.raises(ValueError, match="tail_bytes"):
        await session.start(["true"], output=cloister.OutputPolicy(tail_bytes=0))


async def test_a_reader_that_waits_loses_nothing_when_the_program_waits_for_it(
    session: cloister.AsyncSession,
) -> None:
    few = cloister.OutputPolicy(spool_bytes=1, block_when_full=True)
    many = ["head", "-c", "40000000", "/dev/zero"]
    process = await session.start(many, output=few)
    first = await anext(process)
    assert await process.wait(0.5) is None
    assert isinstance(first, cloister.Output)
    assert len(first.data + await read(process)) == 40_000_000


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


async def test_another_object_writes_on(session: cloister.AsyncSession) -> None:
    process = await session.start(["cat"], stdin=True)
    await process.write(b"one ")
    again = await session.attach(process.id)
    await again.write(b"two")
    await again.close_stdin()
    assert await process.output() == b"one two"
    with pytest.raises(cloister.FailedPreconditionError) as error:
        await again.write(b"three")
    assert error.value.reason == "STDIN_CLOSED"
    without = await session.start(["true"])
    with pytest.raises(cloister.FailedPreconditionError) as error:
        await without.write(b"x")
    assert error.value.reason == "NO_STDIN"


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


async def test_characters_that_come_in_parts(session: cloister.AsyncSession) -> None:
    script = (
        r"printf 'a\303'; printf '\342' >&2; read; printf '\251'; printf '\202\254' >&2; read; "
        r"printf '\377\303'"
    )
    process = await session.start(["bash", "-c", script], stdin=True)
    pieces: list[str] = []

    async def collect() -> None:
        pieces.extend([each async for each in process.text()])

    reading = asyncio.create_task(collect())
    for end in (3, 6):
        await until(functools.partial(has_read, process, end), pause=0.005)
        await process.write(b"\n")
    await reading
    assert sorted("".join(pieces)) == sorted("a\u00e9\u20ac\ufffd\ufffd")
    assert await process.output("stderr") == "\u20ac".encode()


def has_read(process: AsyncProcess, offset: int) -> bool:
    return process.offset == offset


async def test_a_loop_that_was_left_or_cancelled_is_gone_on_with(
    session: cloister.AsyncSession,
) -> None:
    process = await session.start(["bash", "-c", "echo 1; read; echo 2; read; echo 3"], stdin=True)
    async for event in process:
        assert isinstance(event, cloister.Output)
        assert event.data == b"1\n"
        break
    reading = asyncio.create_task(anext(process))
    waiting = asyncio.create_task(process.result())
    await asyncio.sleep(0)
    assert await process.wait(0.05) is None
    for each in (reading, waiting):
        each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await each
    await process.write(b"\n\n")
    assert await read(process) == b"2\n3\n"
    assert (await process.result()).ok


async def test_a_cancelled_write_is_gone_on_with(
    session: cloister.AsyncSession, server: Sandbox
) -> None:
    script = "while [ ! -e reads-now ]; do sleep 0.02; done; cat"
    process = await session.start(["bash", "-c", script], stdin=True)
    writing = asyncio.create_task(process.write(b"x" * 1_000_000))
    assert await process.wait(0.2) is None
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    (server.workspace / "reads-now").touch()
    await process.write(b"yz")
    await process.close_stdin()
    content = await process.output()
    assert content.strip(b"x") == b"yz"
    assert len(content) < 1_000_002


@pytest.mark.parametrize("work", ["read", "write", "call"])
async def test_closing_the_session_object_ends_what_waits_with_an_error(
    session: cloister.AsyncSession, kubeconfig: str, work: str
) -> None:
    process = await session.start(["sleep", "600"], stdin=True)
    async with cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client:
        other = await client.get_session(session.name)
        same = await other.attach(process.id)
        waiting: asyncio.Task[object]
        if work == "read":
            waiting = asyncio.create_task(_next(same))
        elif work == "write":
            waiting = asyncio.create_task(same.write(bytes(1_000_000)))
        else:
            waiting = asyncio.create_task(other.bash("sleep 600", context="closed"))
        links = other._connection._links
        await until(lambda: any(each.users for each in links), pause=0.01)
        await other.close()
        with pytest.raises(cloister.CallCancelledError, match="session object is closed"):
            await waiting
    await session.close_context("closed")


async def _next(process: AsyncProcess) -> object:
    return await anext(process)


async def test_leaving_the_context_ends_the_whole_tree(
    session: cloister.AsyncSession, server: Sandbox
) -> None:
    script = "setsid sleep 600 & echo $!; sleep 600"
    async with await session.start(["bash", "-c", script]) as process:
        first = await anext(process)
        assert isinstance(first, cloister.Output)
    assert process.exit is not None
    assert process.exit.signal == SIGKILL
    await until(lambda: not Path(f"/proc/{int(first.data)}").exists(), pause=0.01)
    assert process.id not in [each.id for each in await session.processes()]
    async with await session.start(["true"]) as released:
        await released.result()
        await released.release()
        await released.release()


async def test_stopping_gently(session: cloister.AsyncSession) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo up; read"
    process = await session.start(["bash", "-c", script], stdin=True)
    await anext(process)
    assert (await process.stop(grace=20)).code == 3
    assert await process.output() == b"up\nbye\n"
    assert (await process.stop()).code == 3


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


async def test_terminals(session: cloister.AsyncSession) -> None:
    script = "trap 'stty size' WINCH; stty size; echo up; while :; do sleep 0.02; done"
    async with await session.start(["bash", "-c", script], terminal=(91, 17)) as process:
        seen = ""
        async for text in process.text():
            seen += text
            if "up" in seen:
                break
        await process.resize(120, 40)
        async for text in process.text():
            seen += text
            if "40 120" in seen:
                break
        assert seen.startswith("17 91\r\n")


async def test_the_same_id_starts_nothing_again(
    session: cloister.AsyncSession, server: Sandbox
) -> None:
    argv = ["bash", "-c", "cat >> same; echo done"]
    first = await session.start(argv, stdin=True, process_id="same", labels={"a": "b"})
    await first.write(b"1")
    second = await session.start(argv, stdin=True, process_id="same", labels={"a": "b"})
    await second.write(b"2")
    await second.close_stdin()
    assert await first.output() == b"done\n"
    assert (server.workspace / "same").read_text() == "12"
    with pytest.raises(cloister.AlreadyExistsError):
        await session.start(["true"], process_id="same")
    (listed,) = [each for each in await session.processes() if each.id == "same"]
    assert (listed.argv, listed.labels, listed.running) == (tuple(argv), {"a": "b"}, False)
    assert (listed.output_bytes, listed.exit) == (5, await first.result())
    part = await session.attach("same", 2)
    assert await read(part) == b"ne\n"
    with pytest.raises(cloister.NotFoundError):
        await session.attach("unknown")


async def test_a_timeout_is_kept_by_the_server(session: cloister.AsyncSession) -> None:
    ended = await (await session.start(["sleep", "600"], timeout=1)).result()
    assert (ended.reason, ended.ok) == ("timed_out", False)


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


def test_without_an_event_loop(client: cloister.Client) -> None:
    with client.create_session("env") as session:
        with session.start(["cat"], stdin=True, process_id="blocking") as process:
            process.write("h\u00e9".encode())
            assert process.wait(0.05) is None
            assert [each.id for each in session.processes()] == ["blocking"]
            other = session.attach("blocking", 1)
            process.close_stdin()
            assert process.result().ok
            assert "".join(process.text()) == "h\u00e9"
            assert (process.output(), process.offset, process.exit) == (
                "h\u00e9".encode(),
                3,
                process.result(),
            )
            assert b"".join(each.data for each in other if isinstance(each, cloister.Output)) == (
                "\u00e9".encode()
            )
            assert list(process) == []
        assert session.processes() == []
        with session.start(["sleep", "600"], terminal=(80, 24)) as process:
            process.resize(90, 30)
            process.signal(SIGTERM, scope="tree", kill_after=60)
            assert process.result().status == 128 + SIGTERM
            assert process.stop().signal == SIGTERM
        with pytest.raises(cloister.StartFailedError):
            session.start(["nothing-of-this-name"])
