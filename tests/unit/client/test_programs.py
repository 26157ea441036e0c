"""Programs: followed, written to, signalled, stopped."""

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

import cloister
from cloister._programs import AsyncProcess
from cloister._streams import Follower
from cloister_api.exec.v1 import exec_pb2
from support.eventually import until
from support.printed import read
from support.sandbox_server import Sandbox

SIGKILL, SIGTERM = 9, 15


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


async def test_what_comes_with_the_start_is_read_after_it(session: cloister.AsyncSession) -> None:
    together = exec_pb2.OutputEvent()
    together.MergeFrom(STARTED)
    together.MergeFrom(printed(0, b"ab"))
    calls = [Fake(together, EXITED)]
    follower = Follower(
        session._connection, lambda _channel, _offset: calls.pop(0), lambda *_: Fake()
    )
    await follower.begin()
    first = await follower.next()
    assert isinstance(first, cloister.Output)
    assert first.data == b"ab"
    assert await follower.next() is None
    assert follower.exit is not None
    assert follower.exit.code == 4


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
