"""Searches and shells where the server lacks what a program takes."""

import asyncio
import contextlib
import errno
import os
import selectors
import signal
from pathlib import Path
from typing import Any

import pytest

from cloister_sandbox import processes, ripgrep, shell_files
from cloister_sandbox.kin import children
from cloister_sandbox.processes import Reaper
from cloister_sandbox.shell import NotNow, Shell, ShellError
from cloister_sandbox.spawn import spawn
from cloister_sandbox.terminal import launcher
from support.descriptors import descriptors, left, let_go
from support.eventually import until
from support.reaping import installed_reaper

ENV = {"PATH": os.environ["PATH"]}


def test_who_has_no_room_for_a_program_is_not_told_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lack(*_: object) -> int:
        raise OSError(errno.EAGAIN, "no process")

    monkeypatch.setattr(ripgrep, "spawn", lack)
    with pytest.raises(BlockingIOError):
        ripgrep.Search(["x"], "/", ENV, 5)


def test_a_search_that_cannot_be_watched_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def start(_: object, *rest: object) -> int:
        started.append(spawn(["sleep", "60"], *rest))  # type: ignore[arg-type]
        return started[0]

    def lack(_: int) -> None:
        raise OSError(errno.EMFILE, "no descriptor")

    monkeypatch.setattr(ripgrep, "spawn", start)
    monkeypatch.setattr(ripgrep, "_life", lack)
    with pytest.raises(OSError, match="no descriptor"):
        ripgrep.Search(["x"], "/", ENV, 5)
    _, status = os.waitpid(started[0], 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_search_that_cannot_be_heard_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is that the kernel lacks for it."""
    forgotten: list[str] = []

    def start(_: object, *rest: Any) -> int:
        return spawn(["sleep", "60"], *rest)

    def lack(*_: object) -> None:
        raise OSError(errno.ENOMEM, "nothing left to wait with")

    monkeypatch.setattr(ripgrep, "spawn", start)
    monkeypatch.setattr(ripgrep, "forget_tree", forgotten.append)
    monkeypatch.setattr(selectors.PollSelector, "register", lack)
    search = ripgrep.Search(["x"], "/", ENV, 5)
    pid = search._pid
    with pytest.raises(OSError, match="nothing left"):
        next(search.output(lambda: False))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert len(forgotten) == 1


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        (OSError(errno.EAGAIN, "no process"), "no process"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (ValueError("a NUL character"), "a NUL character"),
    ],
)
async def test_a_shell_that_cannot_be_started_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: Exception, told: str
) -> None:
    """Whoever asks for it asks again, as often as there is a command."""
    reaper = Reaper()
    shell = Shell("one", tmp_path, reaper)

    def lack(*_: object) -> None:
        raise lacking

    monkeypatch.setattr(processes, "_begin", lack)
    open_after = []
    for _ in range(3):
        with pytest.raises(ShellError, match=f"bash cannot be started in /: {told}"):
            await shell.open("/", ENV)
        await until(lambda: not any(tmp_path.iterdir()))
        open_after.append(await let_go(reaper.hands))
    assert open_after[-1] <= open_after[0]


async def test_a_shell_that_cannot_be_heard_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that keeps it from being heard."""
    reaper = installed_reaper()
    shell = Shell("one", tmp_path, reaper)

    def lack(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", lack)
    open_after = []
    for _ in range(3):
        with pytest.raises(MemoryError):
            await shell.open("/", ENV)
        assert (shell.leader[0], shell.alive) == (0, False)
        await until(lambda: not any(tmp_path.iterdir()))
        open_after.append(await let_go(reaper.hands))
    assert open_after[-1] <= open_after[0]
    assert not children(os.getpid())


async def test_files_of_a_shell_that_cannot_be_made_leave_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor")

    monkeypatch.setattr(shell_files, "_replace", lack)
    with pytest.raises(ShellError, match="no descriptor"):
        await Shell("one", tmp_path, Reaper()).open("/", ENV)
    await until(lambda: not any(tmp_path.iterdir()))


async def test_a_command_that_cannot_be_begun_costs_no_shell(tmp_path: Path) -> None:
    """With its shell would go what other commands have left in it, and in the background."""
    reaper = installed_reaper()
    shell = Shell("one", tmp_path, reaper)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await shell.open("/", ENV)
    leader = shell.leader
    try:
        await let_go(reaper.hands)
        with left(0), pytest.raises(NotNow, match="cannot be used: Too many open files"):
            await shell.run(":", 20, never)
        for count in range(1, 4):
            await let_go(reaper.hands)
            with left(count), contextlib.suppress(NotNow):
                await shell.run(":", 20, never)
        assert (await shell.run("echo on", 20, never)).output == "on\n"
        assert shell.leader == leader
    finally:
        await shell.retire()


async def test_a_command_whose_output_cannot_be_opened_costs_no_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell("one", tmp_path, installed_reaper())
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await shell.open("/", ENV)
    leader = shell.leader
    opened = os.open

    def lack(path: str, *how: Any, **where: Any) -> int:
        if path == "out":
            raise OSError(errno.EMFILE, "no descriptor")
        return opened(path, *how, **where)

    try:
        with monkeypatch.context() as now:
            now.setattr(os, "open", lack)
            with pytest.raises(NotNow, match="no descriptor"):
                await shell.run(":", 20, never)
        assert (await shell.run("echo on", 20, never)).output == "on\n"
        assert shell.leader == leader
    finally:
        await shell.retire()


def test_what_cannot_be_told_a_launcher_leaves_no_descriptor() -> None:
    before, rounds = descriptors(), 20
    for count in list(range(3)) * rounds:
        with left(count), contextlib.suppress(OSError):
            os.close(launcher(["true"], ENV, 1)[1])
    assert descriptors() - before < rounds
