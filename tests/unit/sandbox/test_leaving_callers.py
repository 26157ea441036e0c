"""Callers who leave in the middle of what starts and ends shells: gRPC cancels their calls."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloister_sandbox.config import Config
from cloister_sandbox.contexts import Contexts
from cloister_sandbox.jobs import Jobs
from cloister_sandbox.processes import Reaper
from cloister_sandbox.shells import Shells
from cloister_sandbox.state import Activity, ServerState
from support.descriptors import descriptors, let_go
from support.eventually import until
from support.reaping import installed_reaper

ENV = {"PATH": os.environ["PATH"]}


async def gone(pid: int) -> None:
    """Wait until a process has ended, and was reaped."""
    await until(lambda: not Path(f"/proc/{pid}").exists())


async def opened_and_closed(shells: Shells, cwd: Path) -> None:
    """What the first shell opens stays open."""
    await shells.open("first", str(cwd), ENV, b"")
    await shells.close("first")
    await until(lambda: not any(cwd.iterdir()))


async def leave(call: "asyncio.Task[Any]") -> None:
    """Cancel a call that is under way, as gRPC does."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = installed_reaper()
    async with asyncio.timeout(60):
        yield reaper


async def test_a_shell_whose_caller_leaves_while_it_opens_is_there(
    tmp_path: Path, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    shells = Shells(tmp_path, reaper, Activity(), Jobs())
    await opened_and_closed(shells, tmp_path)
    before = await let_go(reaper.hands)
    started, go_on = asyncio.Event(), asyncio.Event()
    start = reaper.start

    async def slowly(*args: Any, **given: Any) -> Any:
        found = await start(*args, **given)
        started.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(reaper, "start", slowly)
    opening = asyncio.create_task(shells.open("left", str(tmp_path), ENV, b""))
    await started.wait()
    await leave(opening)
    go_on.set()
    slot = await shells.open("left", str(tmp_path), ENV, b"")
    assert slot.generation == 1, "it is the one that was opened"
    pid = slot.shell.leader[0]
    await shells.close("left")
    await gone(pid)
    await until(lambda: descriptors() <= before)


async def test_a_shell_whose_caller_leaves_while_it_closes_ends(
    tmp_path: Path, reaper: Reaper
) -> None:
    shells = Shells(tmp_path, reaper, Activity(), Jobs())
    await opened_and_closed(shells, tmp_path)
    before = await let_go(reaper.hands)
    slot = await shells.open("left", str(tmp_path), ENV, b"")
    pid = slot.shell.leader[0]
    await leave(asyncio.create_task(shells.close("left")))
    await gone(pid)
    await until(lambda: descriptors() <= before)


async def test_a_context_whose_caller_leaves_while_it_closes_ends(
    tmp_path: Path, reaper: Reaper
) -> None:
    config = Config.from_environment(
        {
            "CLOISTER_POD_UID": "pod",
            "CLOISTER_WORKSPACE": str(tmp_path),
            "CLOISTER_STATE_DIR": str(tmp_path / "state"),
        }
    )
    contexts = Contexts(config, ServerState(), reaper)
    shell = contexts.get("left").shell
    await shell.open(str(tmp_path), ENV)
    pid = shell.leader[0]
    await leave(asyncio.create_task(contexts.close("left")))
    await gone(pid)
    await until(lambda: shell.leader[0] == 0)
    await contexts.close_all()
