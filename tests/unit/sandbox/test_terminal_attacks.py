"""What a program with a terminal may try: to let go of it, and to keep it from others."""

import asyncio
import errno
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import programs, terminal
from cloister_sandbox.outputs import Policy
from cloister_sandbox.state import Activity
from support.file_calls import eventually
from support.jobs import Jobs, read
from support.reaping import installed_reaper
from support.sandbox_server import Sandbox

pytestmark = pytest.mark.long

SIZE = exec_pb2.TerminalSize(columns=80, rows=24)
STOPS = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
LIES = "import os, sys; os.write(int(sys.argv[2]), b'9' * 16)"
LETS_GO = "trap '' HUP; exec < /dev/null > /dev/null 2>&1; touch gone; sleep 300"


@pytest.fixture
def jobs(claimed: Sandbox) -> Iterator[Jobs]:
    with claimed.worker() as channel:
        yield Jobs(channel)


def test_input_for_a_terminal_that_was_let_go_reaches_nobody_else(
    jobs: Jobs, claimed: Sandbox
) -> None:
    """Nothing else may get the server's descriptor while it is still written to."""
    first, other = uuid.uuid4().hex, uuid.uuid4().hex
    letting_go = jobs.start("bash", "-c", LETS_GO, process_id=first, terminal=SIZE)
    eventually((claimed.workspace / "gone").exists)
    honest = jobs.start("head", "-n", "1", process_id=other, terminal=SIZE)
    jobs.write(first, (0, b"stolen\n", False))
    size = exec_pb2.TerminalSize(columns=7, rows=7)
    jobs.processes.Resize(exec_pb2.ResizeRequest(process_id=first, size=size), timeout=30)
    jobs.write(other, (0, b"honest\n", False))
    assert "stolen" not in read(honest).text
    jobs.signal(first, signal.SIGKILL)
    assert read(letting_go).exited.signal == signal.SIGKILL


def test_a_program_may_let_go_of_its_terminal_and_come_back(jobs: Jobs, claimed: Sandbox) -> None:
    script = "exec < /dev/null > /dev/null 2>&1; sleep 0.5; echo back > /dev/tty; exit 7"
    seen = jobs.program("bash", "-c", script, terminal=SIZE)
    assert seen.exited.code == 7
    assert seen.text == "back\r\n"


async def test_a_launcher_that_a_tool_stops_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a program with a terminal and its start is a process that tools can stop."""
    monkeypatch.setattr(programs, "STARTING", 1)
    monkeypatch.setattr(terminal, "LAUNCH_SECONDS", 1.0)
    monkeypatch.setattr(terminal, "_LAUNCHER", STOPS)
    reaper = installed_reaper()
    started = programs.Programs(reaper, Activity())

    def order(*argv: str, size: tuple[int, int] | None = None) -> programs.Order:
        env = {"PATH": os.environ["PATH"]}
        return programs.Order(argv, str(tmp_path), env, Policy(), size)

    async with asyncio.timeout(30):
        held, _ = started.start("held", b"", order("true", size=(80, 24)))
        free, _ = started.start("free", b"", order("true"))
        await free.done
        assert not held.done.done()
        await held.done
    assert held.failure is not None
    assert held.failure.errno == errno.ETIMEDOUT


async def test_what_a_tool_says_in_a_launchers_place_is_taken_for_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_LAUNCHER", LIES)
    await fails_to_start_on_a_terminal(tmp_path)


async def test_who_takes_a_launchers_word_stops_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool can open the pipe, too, put something in and take it out again."""

    async def taken(*_: object) -> bool:
        return True

    monkeypatch.setattr(terminal, "_LAUNCHER", STOPS)
    monkeypatch.setattr(terminal, "_readable", taken)
    await fails_to_start_on_a_terminal(tmp_path)


async def fails_to_start_on_a_terminal(folder: Path) -> None:
    """A program in whose launcher's place something else is has no start, and that is told."""
    reaper = installed_reaper()
    started = programs.Programs(reaper, Activity())
    env = {"PATH": os.environ["PATH"]}
    order = programs.Order(("true",), str(folder), env, Policy(), (80, 24))
    async with asyncio.timeout(30):
        job, _ = started.start("held", b"", order)
        await job.done
    assert job.failure is not None
    assert job.failure.errno == errno.EIO
