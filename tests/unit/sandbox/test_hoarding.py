"""What somebody may pile up in the server: descriptors that others then lack."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import leftovers
from cloister_sandbox.leftovers import Leftovers
from cloister_sandbox.shell import Shell, ShellError
from support.descriptors import let_go
from support.eventually import until
from support.file_calls import eventually
from support.jobs import Jobs
from support.reaping import installed_reaper
from support.sandbox_server import Sandbox, Tools, sandbox

pytestmark = pytest.mark.long

HOARDS = """
import os, signal, socket
os.closerange(0, 3)
place = socket.socket(socket.AF_UNIX)
place.bind("hoard")
place.listen(1000)
kept = []
while True:
    given, _ = place.accept()
    kept += socket.recv_fds(given, 1, 8)[1]
    given.sendall(b"x")
    if len(kept) == 100:  # it has the server's own bound
        if os.fork():
            signal.pause()
        for each in kept:
            os.close(each)
        kept.clear()
"""
GIVES = """
import socket
place = socket.socket(socket.AF_UNIX)
place.connect("hoard")
socket.send_fds(place, [b"x"], [1])
place.recv(1)
"""
EACH = 170
"""Of both kinds together more than the server may have open."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(tmp_path, open_files=leftovers.MOST + 100) as started:
        started.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        started.claim()
        for name, text in (("hoards.py", HOARDS), ("gives.py", GIVES)):
            (started.workspace / name).write_text(text)
        yield started


def test_ends_of_pipes_that_one_process_collects(server: Sandbox) -> None:
    """Each command hands its output on to a process that stays, and ends."""
    with server.worker() as channel:
        tools, jobs = Tools(channel), Jobs(channel)
        tools.bash("python3 -S hoards.py > /dev/null 2>&1 &")
        eventually((server.workspace / "hoard").exists)
        for _ in range(EACH):
            assert tools.bash("python3 -S gives.py; echo done") == "done"
            assert jobs.program("python3", "-S", "gives.py").exited.code == 0
        assert tools.bash("echo on", context_id="another") == "on"
        open_now = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert leftovers.MOST < open_now < leftovers.MOST + 100


def test_the_oldest_make_room() -> None:
    class Held:
        held = True

        def close(self) -> None:
            self.held = False

    kept = Leftovers(most=2)
    first, second, third, fourth = (Held() for _ in range(4))
    for each in (first, second):
        kept.keep(each)
    second.close()
    kept.keep(third)
    assert first.held, "what ended makes room before what goes on"
    kept.keep(fourth)
    assert [each.held for each in (first, second, third, fourth)] == [False, False, True, True]


async def test_a_shell_that_is_closed_while_it_opens_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaper = installed_reaper()
    started: list[int] = []
    start = reaper.start

    async def slowly(*args: object, **given: object) -> "tuple[int, asyncio.Future[int]]":
        pid, ended = await start(*args, **given)  # type: ignore[arg-type]
        started.append(pid)
        await shell.retire()
        return pid, ended

    env = {"PATH": os.environ["PATH"]}
    first = Shell("first", tmp_path, reaper)
    await first.open(str(tmp_path), env)  # opens what stays open
    await first.retire()
    await until(lambda: not any(tmp_path.iterdir()))
    monkeypatch.setattr(reaper, "start", slowly)
    shell = Shell("closed", tmp_path, reaper)
    before = await let_go(reaper.hands)
    async with asyncio.timeout(30):
        with pytest.raises(ShellError, match="closed"):
            await shell.open(str(tmp_path), env)
    assert not shell.alive
    await until(lambda: not any(tmp_path.iterdir()))
    assert await let_go(reaper.hands) <= before
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], signal.SIGCONT)
