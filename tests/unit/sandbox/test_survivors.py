"""What goes on of programs and commands that ended: kept in mind for as long as it does."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cloister_sandbox import kin
from cloister_sandbox.kin import MARK
from cloister_sandbox.shell import Finished, Shell
from cloister_sandbox.spawn import nothing
from cloister_sandbox.survivors import Survivors
from support.eventually import until
from support.reaping import installed_reaper


async def test_only_what_goes_on_is_kept_in_mind() -> None:
    """A worker's programs leave something behind, again and again, which ends later."""
    reaper = installed_reaper()
    survivors = Survivors(reaper.unended, first_look=8)
    running: dict[int, asyncio.Future[int]] = {}
    async with asyncio.timeout(60):
        for number in range(7):
            env = {"PATH": os.environ["PATH"], MARK: f"tree-{number}"}
            pid, ended = await reaper.start(
                ["sleep", "300"], cwd="/", env=env, stdin=nothing(), pass_fds=()
            )
            running[pid] = ended
            survivors.add(f"tree-{number}")
        assert len(survivors) == 7
        staying, *leaving = running
        for pid in leaving:
            os.kill(pid, signal.SIGKILL)
            await running[pid]
        survivors.add("over")
        await until(lambda: len(survivors) == 1)
        await survivors.kill()
        assert await running[staying] == -signal.SIGKILL


async def test_all_that_goes_on_of_commands_is_counted_and_spared_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond the bound of a quick look, too: a later command's timeout is not theirs."""
    monkeypatch.setattr(kin, "_MANY", 3)
    shell = Shell("one", tmp_path, installed_reaper())
    await shell.open("/", {"PATH": os.environ["PATH"]})

    async def run(command: str, timeout: float) -> Finished:
        return await shell.run(command, timeout, asyncio.get_running_loop().create_future())

    started = await run("for _ in 1 2 3 4 5; do (sleep 300 &) ; sleep 300 & done", 60)
    assert started.surviving == 10
    late = await run("sleep 300 & sleep 300", 0.2)
    assert (late.timed_out, late.shell_lost, late.surviving) == (True, False, 10)
    pid, mark = shell.leader
    await shell.retire()
    assert kin.members(pid, mark) == []
