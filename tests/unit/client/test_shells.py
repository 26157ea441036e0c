"""Shells: state that stays, commands that are found again and never run twice."""

import asyncio

import pytest

import cloister
from support.fault_proxy import Fault, FaultProxy, Kind, Way
from support.sandbox_server import Sandbox


async def test_state_stays_from_command_to_command(session: cloister.AsyncSession) -> None:
    async with await session.shell(cwd="/usr", env={"WHO": "me"}) as shell:
        first = await (await shell.run("cd lib; x=1; f() { echo $x$WHO; }; (exit 3)")).result()
        assert (first.code, first.cwd, first.reason) == (3, "/usr/lib", "exited")
        command = await shell.run("f; pwd; echo err >&2")
        assert "".join([each async for each in command.text()]) == "1me\n/usr/lib\nerr\n"
        assert (await command.result()).ok
        assert await command.output() == b"1me\n/usr/lib\nerr\n"
        (listed,) = await session.shells()
        assert (listed.id, listed.busy, listed.cwd) == (shell.id, False, "/usr/lib")
        same = await session.shell(shell.id, cwd="/usr", env={"WHO": "me"})
        assert await (await same.run("f")).output() == b"1me\n"
        with pytest.raises(cloister.AlreadyExistsError):
            await session.shell(shell.id, cwd="/tmp")
        await shell.reset()
        assert (shell.info.generation, shell.info.cwd) == (2, "/usr")
        assert await (await shell.run("echo [$x]")).output() == b"[]\n"
    assert await session.shells() == []
    await shell.close()
    with pytest.raises(cloister.NotFoundError):
        await shell.run("true")


async def test_output_can_be_read_after_the_result(session: cloister.AsyncSession) -> None:
    async with await session.shell() as shell:
        command = await shell.run("echo one; echo two")
        assert (await command.result()).ok
        assert command.offset == 0
        assert "".join([each async for each in command.text()]) == "one\ntwo\n"
        assert command.offset == 8
        assert (await command.result()).ok
        assert [each async for each in command] == []


async def test_a_command_goes_on_without_its_reader(
    session: cloister.AsyncSession, server: Sandbox
) -> None:
    async with await session.shell() as shell:
        command = await shell.run("echo 1; while [ ! -e shell-go ]; do sleep 0.02; done; echo 2")
        assert getattr(await anext(command), "data", None) == b"1\n"
        waiting = asyncio.create_task(command.result())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(cloister.FailedPreconditionError) as busy:
            await shell.run("true")
        assert (busy.value.reason, busy.value.metadata["command_id"]) == ("SHELL_BUSY", command.id)
        attached = await shell.attach(command.id)
        (server.workspace / "shell-go").touch()
        assert await attached.output() == b"1\n2\n"
        assert "".join([each async for each in command.text()]) == "2\n"
        with pytest.raises(cloister.NotFoundError):
            await shell.attach("unknown")


async def test_a_command_that_is_out_of_time(session: cloister.AsyncSession) -> None:
    async with await session.shell() as shell:
        killed = await (await shell.run("x=kept; sleep 600", timeout=1)).result()
        assert (killed.reason, killed.ok) == ("timed_out", False)
        assert await (await shell.run("echo $x")).output() == b"kept\n"
        command = await shell.run("echo 1; sleep 2; echo 2", timeout=1, on_timeout="detach")
        ended = await command.result()
        assert (ended.reason, ended.status, ended.next_offset) == ("detached", None, 2)
        async with await session.attach(ended.process_id, ended.next_offset) as process:
            assert (await process.result()).ok
            assert "".join([each async for each in process.text()]) == "2\n"
        with pytest.raises(ValueError, match="on_timeout"):
            await shell.run("true", on_timeout="ask")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Kind.RESET, Kind.CLOSE])
async def test_a_command_survives_lost_connections_and_runs_once(
    session: cloister.AsyncSession, proxy: FaultProxy, server: Sandbox, kind: Kind
) -> None:
    journal = server.workspace / f"shell-{kind.value}"
    expected = "".join(f"{each}\n" for each in range(1, 200_001)).encode()
    async with await session.shell() as shell:
        proxy.arm([Fault(kind, Way.DOWN, after_bytes=each) for each in (1, 2000, 300_000, 300_000)])
        command = await shell.run(f"echo ran >> {journal.name}; seq 1 200000; (exit 9)")
        events = [each async for each in command]
        assert b"".join(getattr(each, "data", b"") for each in events) == expected
        assert (await command.result()).code == 9
        assert proxy.happened[kind] == 4
        assert journal.read_text() == "ran\n"
        proxy.cut()
        again = await shell.run(
            f"echo ran >> {journal.name}; seq 1 200000; (exit 9)", command_id=command.id
        )
        assert (await again.result()).code == 9
        assert journal.read_text() == "ran\n"


def test_without_an_event_loop(client: cloister.Client) -> None:
    with client.create_session("env") as session, session.shell(cwd="/usr") as shell:
        command = shell.run("pwd; cd lib; echo h\u00e9")
        assert "".join(command.text()) == "/usr\nh\u00e9\n"
        assert command.result().cwd == "/usr/lib"
        assert shell.attach(command.id).output() == "/usr\nh\u00e9\n".encode()
        assert [each.id for each in session.shells()] == [shell.id]
        shell.reset()
        assert shell.info.generation == 2
        assert b"".join(getattr(each, "data", b"") for each in shell.run("pwd")) == b"/usr\n"
