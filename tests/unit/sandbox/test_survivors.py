"""What goes on of programs that ended: kept in mind for as long as it does."""

import asyncio
import os
import signal

from cloister_sandbox.kin import MARK
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
