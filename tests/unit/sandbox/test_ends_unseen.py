"""Ends of shells and programs where no descriptor is left: tools can take all by connections."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn

import pytest

from cloister_sandbox import interrupts, kin, shell, unended
from cloister_sandbox.commands import Script
from cloister_sandbox.config import Config
from cloister_sandbox.contexts import Contexts
from cloister_sandbox.finishing import each_to_its_end
from cloister_sandbox.jobs import Jobs, Reason
from cloister_sandbox.kin import signal_all
from cloister_sandbox.outputs import Policy
from cloister_sandbox.processes import Reaper
from cloister_sandbox.programs import Order, Program, Programs
from cloister_sandbox.shell import Shell
from cloister_sandbox.shells import Shells, Slot
from cloister_sandbox.spawn import nothing
from cloister_sandbox.state import Activity, ServerState
from support.descriptors import descriptors, let_go
from support.eventually import until
from support.reaping import installed_reaper

ENV = {"PATH": os.environ["PATH"]}
Blind = Callable[[], None]


def lack(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = installed_reaper()
    async with asyncio.timeout(60):
        yield reaper


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Blind:
    """Makes that nobody can look for processes any more, until the patch is undone."""

    def close_eyes() -> None:
        monkeypatch.setattr(kin, "ENDING_SECONDS", 0.01)
        monkeypatch.setattr(unended, "AGAIN_SECONDS", 0.01)
        monkeypatch.setattr(os, "scandir", lack)

    return close_eyes


def config(directory: Path) -> Config:
    places = {"CLOISTER_WORKSPACE": str(directory), "CLOISTER_STATE_DIR": str(directory / "state")}
    return Config.from_environment({"CLOISTER_POD_UID": "pod", **places})


def script(text: str, *, seconds: float = 0.0, detach: bool = False) -> Script:
    return Script(text, seconds, detach=detach, policy=Policy())


async def kept_in_mind_until_it_ends(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch, trees: int = 1
) -> None:
    await until(lambda: len(reaper.unended) == trees)
    monkeypatch.undo()
    await until(lambda: not len(reaper.unended))


async def test_a_shell_is_closed(
    tmp_path: Path, reaper: Reaper, blind: Blind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it runs, and what it holds; what it started is looked for later."""
    shells = Shells(tmp_path, reaper, Activity(), Jobs())
    await shells.open("first", str(tmp_path), ENV, b"")
    first, _ = shells.run("first", "c", b"", script(":"))
    await asyncio.wait([first.done])
    await shells.close("first")
    await until(lambda: not any(tmp_path.iterdir()))
    before = await let_go(reaper.hands)
    await shells.open("s", str(tmp_path), ENV, b"")
    job, _ = shells.run("s", "c", b"", script("sleep 300"))
    await job.begun
    blind()
    await shells.close("s")
    assert shells.all() == []
    assert not job.running
    await kept_in_mind_until_it_ends(reaper, monkeypatch)
    await until(lambda: descriptors() <= before)


async def test_all_shells_and_contexts_are_closed(
    tmp_path: Path, reaper: Reaper, blind: Blind, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = Contexts(config(tmp_path), ServerState(), reaper)
    shells = Shells(tmp_path, reaper, Activity(), Jobs())
    opened: list[Shell] = []
    for name in "ab":
        opened.append(contexts.get(name).shell)
        await opened[-1].open(str(tmp_path), ENV)
        opened.append((await shells.open(name, str(tmp_path), ENV, b"")).shell)
    blind()
    await shells.close_all()
    await contexts.close_all()
    assert not any(each.alive or each.leader[0] for each in opened)
    await kept_in_mind_until_it_ends(reaper, monkeypatch, trees=4)


async def test_what_fails_keeps_nothing_else_from_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = []

    async def end(name: str) -> None:
        if name == "worse":
            raise RuntimeError("secret words")
        await asyncio.sleep(0)
        ended.append(name)

    await each_to_its_end(end, ["one", "worse", "other"])
    assert ended == ["one", "other"]
    assert "RuntimeError in test_ends_unseen.py" in caplog.text
    assert "secret" not in caplog.text


async def test_a_command_that_went_on_as_a_process_ends(
    tmp_path: Path, reaper: Reaper, blind: Blind, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Jobs()
    shells = Shells(tmp_path, reaper, Activity(), processes)
    await shells.open("s", str(tmp_path), ENV, b"")
    job, _ = shells.run("s", "c", b"", script("sleep 300", seconds=0.01, detach=True))
    await until(lambda: bool(job.detached_as))
    await until(lambda: shells.get("s").generation == 2)
    blind()
    await processes.stop_all(Reason.SHUTDOWN)
    assert not job.running
    await kept_in_mind_until_it_ends(reaper, monkeypatch)
    await shells.close_all()


async def test_a_command_that_runs_out_of_time_ends_with_its_shell(
    tmp_path: Path, reaper: Reaper, blind: Blind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell what of its tree is to be interrupted."""
    one = Shell("one", tmp_path, reaper)
    await one.open(str(tmp_path), ENV)
    blind()
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    finished = await one.run("echo begun; sleep 300", 0.5, never)
    assert (finished.output, finished.timed_out, finished.shell_lost) == ("begun\n", True, True)
    await kept_in_mind_until_it_ends(reaper, monkeypatch)
    await one.retire()


async def test_what_an_interrupted_command_leaves_ends_with_its_shell(
    tmp_path: Path, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Shell("one", tmp_path, reaper)
    await one.open(str(tmp_path), ENV)
    left = tmp_path / "left"
    monkeypatch.setattr(shell, "kill_started", lack)
    monkeypatch.setattr(interrupts, "members", lambda *_, **__: [])
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    command = f"sleep 300 & echo $! >{left}; wait"
    finished = await one.run(command, 0.5, never)
    assert (finished.timed_out, finished.shell_lost) == (True, True)
    pid = int(left.read_text())
    await until(lambda: not Path(f"/proc/{pid}/exe").exists())
    await one.retire()


async def test_a_program_is_stopped(
    tmp_path: Path, reaper: Reaper, blind: Blind, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Programs(reaper, Activity())
    job, _ = own.start("p", b"", Order(("sleep", "300"), str(tmp_path), ENV, Policy()))
    await job.begun
    blind()
    await own.close()
    assert job.ending is not None
    assert (job.ending.code, job.ending.reason) == (-signal.SIGKILL, Reason.SHUTDOWN)
    await kept_in_mind_until_it_ends(reaper, monkeypatch)


async def test_who_is_in_no_table_is_looked_for_among_orphans_though_it_is_late(
    reaper: Reaper, blind: Blind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who starts another and ends, again and again, is gone when the table is read."""
    env = {**ENV, kin.MARK: "late"}
    pid, ended = await reaper.start(
        ["sleep", "300"], cwd="/", env=env, stdin=nothing(), pass_fds=[]
    )
    blind()
    await reaper.unended.end(pid, "late")
    assert len(reaper.unended) == 1
    monkeypatch.setattr(kin, "_members", lambda *_: [])
    monkeypatch.setattr(kin, "orphans", lambda: [pid])
    await until(lambda: not len(reaper.unended))
    await asyncio.wait([ended], timeout=5)
    found = ended.done()
    signal_all([pid], signal.SIGKILL)
    assert found


async def test_who_can_list_processes_but_look_at_none_finds_not_that_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last descriptor is the list's own."""
    monkeypatch.setattr(kin, "_fields", lack)
    monkeypatch.setattr(kin, "ENDING_SECONDS", 0.0)
    with pytest.raises(OSError, match="Too many"):
        await kin.kill_tree(kin.NOBODY, "tree")
    with pytest.raises(OSError, match="Too many"):
        kin.living({"tree"})


def test_what_nobody_can_look_at_has_not_lost_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lack)
    with pytest.raises(OSError, match="Too many"):
        kin._marked(os.getpid())


async def test_a_program_that_ends_has_its_result(
    tmp_path: Path, reaper: Reaper, blind: Blind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether something of it goes on nobody can tell: it counts as if, until the server's end."""
    own = Programs(reaper, Activity())
    order = Order(("sh", "-c", "read x; exit 7"), str(tmp_path), ENV, Policy(), stdin=True)
    job, _ = own.start("p", b"", order)
    assert isinstance(job, Program)
    await job.begun
    assert job.input is not None
    monkeypatch.setattr(reaper, "has_orphans", lambda: True)
    blind()
    await job.input.write(0, b"", True)
    await asyncio.wait([job.done])
    assert job.ending is not None
    assert (job.ending.code, job.ending.reason) == (7, Reason.EXITED)
    await until(lambda: len(own._survivors) == 1)
    await own.close()
    await kept_in_mind_until_it_ends(reaper, monkeypatch)


async def test_a_program_whose_care_failed_is_not_forgotten(
    tmp_path: Path, reaper: Reaper, blind: Blind, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Programs(reaper, Activity())
    monkeypatch.setattr(Program, "run", lack)
    blind()
    job, _ = own.start("p", b"", Order(("true",), str(tmp_path), {}, Policy()))
    await asyncio.wait(own._running)
    assert job.failure is not None
    await kept_in_mind_until_it_ends(reaper, monkeypatch)


@pytest.mark.parametrize("ending", [False, True])
async def test_a_command_for_whose_shell_there_are_no_descriptors_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ending: bool
) -> None:
    """Neither for a new bash, nor for a look at what was left of the one before."""
    shells = Shells(tmp_path, Reaper(), Activity(), Jobs())
    slot = shells._slots["s"] = Slot("s", b"", str(tmp_path), {}, shells._new_shell())
    made: list[socket.socket] = []
    pair = socket.socketpair

    def scarce() -> tuple[socket.socket, socket.socket]:
        if made:
            lack()
        made.extend(pair())
        return made[0], made[1]

    async def close(_: Shell) -> None:
        lack()

    monkeypatch.setattr(socket, "socketpair", scarce)
    if ending:
        monkeypatch.setattr(Shell, "close", close)
    job, _ = shells.run("s", "c", b"", script(":"))
    await asyncio.wait(shells._tasks)
    assert job.failure is not None
    assert "Too many open files" in job.failure.message
    assert slot.running is None
    assert {each.fileno() for each in made} <= {-1}
