"""A user may wait for so many descriptors with epoll, and tools are that user: what is not watched
any more costs output that comes too late, and no result.
"""

import asyncio
import errno
import os
import selectors
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import inlet, stdin, terminal
from cloister_sandbox.capture import Output
from cloister_sandbox.errors import Busy
from cloister_sandbox.hands import Hands
from cloister_sandbox.outputs import OutputStore, Policy
from cloister_sandbox.paths import Roots
from cloister_sandbox.ripgrep import Search
from cloister_sandbox.services.files import FilesService
from cloister_sandbox.shell_files import make_output
from cloister_sandbox.sources import STDOUT, Source
from cloister_sandbox.state import Activity, Phase, ServerState
from cloister_sandbox.stdin import Stdin
from support.eventually import until


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From when `taken` is called on nothing more can be watched."""
    return monkeypatch


def taken(patch: pytest.MonkeyPatch) -> None:
    def add_reader(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("add_reader", "add_writer"):
        patch.setattr(asyncio.get_running_loop(), name, add_reader)


def store() -> OutputStore:
    return OutputStore(Policy(), lambda: None, lambda: None)


def has_no_reader(printing: int) -> bool:
    """Whether who prints learns that nobody reads."""
    try:
        os.write(printing, b"later\n")
    except BrokenPipeError:
        return True
    return False


async def test_a_command_has_its_result(tmp_path: Path, full: pytest.MonkeyPatch) -> None:
    output = Output(make_output(str(tmp_path / "out"), -1), Hands("hands"))
    printing = os.open(tmp_path / "out", os.O_WRONLY)
    os.write(printing, b"done\n")
    taken(full)
    output.go_on()
    assert (await output.finish()).text() == "done\n"
    assert not output.held
    await until(lambda: has_no_reader(printing), pause=0.001)
    os.close(printing)


async def test_a_command_is_read_when_there_is_room_again(
    tmp_path: Path, full: pytest.MonkeyPatch
) -> None:
    full.setattr(inlet, "_LOOK_SECONDS", 0.001)
    output = Output(make_output(str(tmp_path / "out"), -1), Hands("hands"))
    printing = os.open(tmp_path / "out", os.O_WRONLY)
    os.write(printing, b"more\n")
    with full.context() as patch:
        taken(patch)
        output.go_on()
    tail = output.tail
    assert tail is not None
    await until(lambda: tail.total == 5, pause=0.001)
    os.close(printing)
    output.close()


async def test_a_command_that_is_to_wait_waits(tmp_path: Path) -> None:
    output = Output(make_output(str(tmp_path / "out"), -1), Hands("hands"))
    printing = os.open(tmp_path / "out", os.O_WRONLY)
    output.go_on()
    output.pause()
    os.write(printing, b"more\n")
    for _ in range(3):
        await asyncio.sleep(0)
    tail = output.tail
    assert tail is not None
    assert tail.total == 0
    output.go_on()
    await until(lambda: tail.total == 5, pause=0.001)
    os.close(printing)
    assert (await output.finish()).text() == "more\n"


async def test_a_program_has_its_output(full: pytest.MonkeyPatch) -> None:
    ours, printing = os.pipe()
    kept = store()
    source = Source(ours, STDOUT, kept, Hands("hands"))
    os.write(printing, b"done\n")
    taken(full)
    await source.flush()
    assert kept.total == 5
    source.drain()
    assert not source.held
    await until(lambda: has_no_reader(printing), pause=0.001)
    os.close(printing)


async def test_a_program_that_waited_goes_on_when_there_is_room_again(
    full: pytest.MonkeyPatch,
) -> None:
    full.setattr(inlet, "_LOOK_SECONDS", 0.001)
    ours, printing = os.pipe()
    kept = store()
    source = Source(ours, STDOUT, kept, Hands("hands"))
    source.resume()
    source.pause()
    os.write(printing, b"more\n")
    with full.context() as patch:
        taken(patch)
        source.go_on()
    await until(lambda: kept.total == 5, pause=0.001)
    source.close()
    os.close(printing)


async def test_a_program_that_prints_much_does_not_wait_for_room(
    full: pytest.MonkeyPatch,
) -> None:
    full.setattr(inlet, "_LOOK_SECONDS", 0.001)
    ours, printing = os.pipe()
    kept = store()
    source = Source(ours, STDOUT, kept, Hands("hands"))
    taken(full)
    source.go_on()

    def write() -> None:
        with os.fdopen(printing, "wb") as file:
            file.write(b"x" * 300_000)

    try:
        async with asyncio.timeout(10):
            await asyncio.to_thread(write)
            await until(lambda: kept.total == 300_000, pause=0.001)
    finally:
        source.close()


async def test_a_program_that_reads_slowly_has_its_input(full: pytest.MonkeyPatch) -> None:
    full.setattr(stdin, "_LOOK_SECONDS", 0.001)
    reading, ours = os.pipe()
    os.set_blocking(ours, False)
    ended = asyncio.get_running_loop().create_future()
    given = Stdin(ours, Hands("hands"), terminal=False, ended=ended)
    taken(full)
    writing = asyncio.create_task(given.write(0, b"x" * 200_000, True))
    left = 200_000
    while left:
        left -= len(await asyncio.to_thread(os.read, reading, left))
    await writing
    assert (given.accepted, given.closed) == (200_000, True)
    os.close(reading)


async def test_a_program_has_its_terminal(full: pytest.MonkeyPatch) -> None:
    full.setattr(terminal, "_LOOK_SECONDS", 0.001)
    answer, report = os.pipe()
    ended = asyncio.get_running_loop().create_future()
    taken(full)
    waiting = asyncio.create_task(terminal.launched(answer, ended, Hands("hands")))
    for _ in range(3):
        await asyncio.sleep(0)
    os.close(report)
    assert await waiting == b""


class Caller:
    """A call's context, as far as a handler asks it."""

    def add_done_callback(self, _: object) -> None:
        """It never ends by itself."""


async def test_who_cannot_be_told_of_changes_hears_why(
    tmp_path: Path, full: pytest.MonkeyPatch
) -> None:
    """It is not the disk that is full, though the kernel's word for it is the same."""
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    watch = FilesService.Watch.__wrapped__.__wrapped__  # type: ignore[attr-defined]
    events = watch(files, exec_pb2.WatchRequest(path=str(tmp_path)), Caller())
    assert (await anext(events)).type == exec_pb2.WatchEvent.TYPE_READY
    taken(full)
    with pytest.raises(Busy, match="taken all") as refused:
        await anext(events)
    assert refused.value.reason == "OUT_OF_RESOURCES"
    await files.close()


def test_a_search_finds_what_there_is(tmp_path: Path, full: pytest.MonkeyPatch) -> None:
    if not hasattr(selectors, "EpollSelector"):
        pytest.skip("there is no epoll")

    def register(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "f").write_text("found\n")
    full.setattr(selectors.EpollSelector, "register", register)
    search = Search(["--no-filename", "found", "f"], str(tmp_path), dict(os.environ), 60)
    assert b"".join(search.output(lambda: False)) == b"found\n"
