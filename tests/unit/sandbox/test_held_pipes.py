"""Pipes and directories that a tool keeps locked: it uses memory that the kernel waits for.

Whoever reads from such a pipe, writes to it or closes it waits too, and whoever makes a file in
such a directory. The event loop must not.
"""

import asyncio
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox import inlet, processes, terminal
from cloister_sandbox.capture import Output
from cloister_sandbox.hands import WARY_SECONDS, Hands
from cloister_sandbox.outputs import OutputStore, Piece, Policy
from cloister_sandbox.polling import events_now
from cloister_sandbox.programs import Order, Program, Programs
from cloister_sandbox.shell import Shell
from cloister_sandbox.shell_files import make_output
from cloister_sandbox.sources import STDOUT, Source
from cloister_sandbox.spawn import spawn
from cloister_sandbox.state import Activity
from cloister_sandbox.stdin import Stdin
from cloister_sandbox.terminal import open_terminal
from support import held_memory
from support.descriptors import descriptors, let_go
from support.eventually import until
from support.file_calls import eventually
from support.held_memory import PAGE, HeldMemory, held
from support.jobs import Jobs
from support.reaping import installed_reaper
from support.sandbox_server import Sandbox, Tools

TURNS = 100


@pytest.fixture(autouse=True)
def _can_be_held() -> None:
    try:
        HeldMemory().release()
    except OSError as error:
        pytest.skip(f"this kernel lets nobody serve its faults: {error}")


@pytest.fixture
async def hands() -> Hands:
    made = Hands("hands")
    await made.run(int)
    return made


async def turns_of(task: "asyncio.Task[None]") -> None:
    """The event loop goes round until a task of it has begun, and waits."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
    assert not task.done()


async def turns(memory: HeldMemory) -> None:
    """The event loop goes round while the pipe is locked."""
    for _ in range(TURNS):
        await asyncio.sleep(0.001)
    assert not memory.released.is_set(), "the event loop waited for the memory"


async def test_a_result_has_what_was_printed_when_the_pipe_is_held_for_a_moment(
    tmp_path: Path, hands: Hands
) -> None:
    output = Output(make_output(str(tmp_path / "out"), -1), hands)
    printing = os.open(tmp_path / "out", os.O_WRONLY)
    os.write(printing, b"said\n")
    with held(printing) as memory:
        finishing = asyncio.create_task(output.finish())
        await turns(memory)
        memory.release()
        assert (await finishing).text().startswith("said\n")
    os.close(printing)
    await until(lambda: not output.held)


async def test_a_result_does_not_wait_for_ever_for_a_pipe_that_is_held(
    tmp_path: Path, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inlet, "FLUSH_SECONDS", 0.05)
    output = Output(make_output(str(tmp_path / "out"), -1), hands)
    printing = os.open(tmp_path / "out", os.O_WRONLY)
    output.go_on()
    with held(printing) as memory:
        os.set_blocking(printing, False)
        assert (await output.finish()).text() == ""
        # What comes later is nobody's, and is read all the same.
        await turns(memory)
        assert output.held
        memory.release()
    os.close(printing)
    await until(lambda: not output.held)


async def test_what_is_held_is_read_on_though_nobody_waits_any_more(
    tmp_path: Path, hands: Hands
) -> None:
    output = Output(make_output(str(tmp_path / "out"), -1), hands)
    printing = os.open(tmp_path / "out", os.O_WRONLY)
    os.write(printing, b"said\n")
    with held(printing):
        flushing = asyncio.create_task(output.flush())
        await turns_of(flushing)
        flushing.cancel()
        await asyncio.wait([flushing])
    os.close(printing)
    await until(lambda: not output.held, pause=0.001)


async def test_what_is_held_is_closed_when_it_is_let_go(tmp_path: Path, hands: Hands) -> None:
    before = descriptors()
    output = Output(make_output(str(tmp_path / "out"), -1), hands)
    printing = os.open(tmp_path / "out", os.O_WRONLY)
    os.write(printing, b"said\n")
    with held(printing) as memory:
        output.close()
        assert not output.held
        await turns(memory)
        memory.release()
    os.close(printing)
    assert await let_go(hands) <= before


def unread(theirs: int) -> bool:
    """Whether nobody has our end of a pipe open."""
    return bool(events_now(theirs) & select.POLLERR)


async def test_what_is_let_go_with_it_is_closed_while_it_is_held(hands: Hands) -> None:
    pipes = [os.pipe() for _ in range(3)]
    first, *others = pipes
    with held(first[1]) as memory:
        for ours, _ in pipes:
            hands.let_go(ours)
        async with asyncio.timeout(5):
            await until(lambda: all(unread(theirs) for _, theirs in others), pause=0.001)
        assert not memory.released.is_set()
    for _, theirs in pipes:
        os.close(theirs)


@pytest.mark.parametrize("use", [HeldMemory.write, HeldMemory.read])
async def test_a_program_whose_pipe_is_held_delays_no_other(
    hands: Hands, use: Callable[[HeldMemory, int], int]
) -> None:
    stores = [OutputStore(Policy(), lambda: None, lambda: None) for _ in range(2)]
    pipes = [os.pipe() for _ in stores]
    theirs = os.open(f"/proc/self/fd/{pipes[0][0]}", os.O_RDWR)
    sources = [
        Source(ours, STDOUT, store, hands) for (ours, _), store in zip(pipes, stores, strict=True)
    ]
    os.write(theirs, b"said\n")
    with held(theirs, use) as memory:
        os.write(pipes[1][1], b"more\n")
        for source in sources:
            source.go_on()
        flushing = asyncio.create_task(sources[0].flush())
        await until(lambda: stores[1].total == 5, pause=0.001)
        await turns(memory)
        assert not flushing.done()
        memory.release()
        await flushing
    if use is HeldMemory.write:
        assert stores[0].total == PAGE + 5
    for source in sources:
        source.close()
    for fd in (theirs, *(each for _, each in pipes)):
        os.close(fd)


async def test_input_that_a_program_holds_is_written_once(hands: Hands) -> None:
    """Its caller goes away and comes again, while a thread still writes."""
    reading, ours = os.pipe()
    os.set_blocking(ours, False)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    given = Stdin(ours, hands, terminal=False, ended=ended)
    await given.write(0, b"first\n", False)
    with held(reading, HeldMemory.read) as memory:
        writing = asyncio.create_task(given.write(6, b"second\n", False))
        await turns(memory)
        writing.cancel()
        again = asyncio.create_task(given.write(6, b"second\n", True))
        await turns(memory)
        memory.release()
        await again
    assert (given.accepted, given.closed) == (13, True)
    with os.fdopen(reading, "rb") as rest:
        assert (await asyncio.to_thread(rest.read)).endswith(b"second\n")


async def test_the_end_of_a_program_does_not_wait_for_its_input(hands: Hands) -> None:
    reading, ours = os.pipe()
    os.set_blocking(ours, False)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    given = Stdin(ours, hands, terminal=False, ended=ended)
    os.write(ours, b"first\n")
    with held(reading, HeldMemory.read) as memory:
        writing = asyncio.create_task(given.write(0, b"second\n", True))
        await asyncio.sleep(0.01)
        ended.set_result(None)
        await writing
        await given.finish()
        await turns(memory)
        memory.release()
    with os.fdopen(reading, "rb") as rest:
        # Its end comes, too.
        assert await asyncio.to_thread(rest.read) in (b"", b"second\n")


async def test_input_that_is_held_is_closed_once_when_the_program_ends(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller went away, and came again; the number is soon another descriptor's."""
    reading, ours = os.pipe()
    os.set_blocking(ours, False)
    close, closed = os.close, list[int]()

    def note(fd: int) -> None:
        closed.append(fd)
        close(fd)

    monkeypatch.setattr(os, "close", note)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    given = Stdin(ours, hands, terminal=False, ended=ended)
    await given.write(0, b"first\n", False)
    with held(reading, HeldMemory.read):
        writing = asyncio.create_task(given.write(6, b"second\n", False))
        await until(lambda: given._under_way is not None)
        writing.cancel()
        again = asyncio.create_task(given.write(6, b"second\n", True))
        await turns_of(again)
        ended.set_result(None)
        await again
        await given.finish()
        assert given.closed
    await let_go(hands)
    with os.fdopen(reading, "rb") as rest:
        assert (await asyncio.to_thread(rest.read)).count(b"second\n") == 1
    assert closed.count(ours) == 1


async def test_the_end_of_a_terminals_input_is_no_byte_of_it(hands: Hands) -> None:
    ours, theirs = open_terminal(80, 24)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    given = Stdin(ours, hands, terminal=True, ended=ended)
    await given.write(0, b"no line", True)
    assert (given.accepted, given.closed) == (7, True)
    for fd in (ours, theirs):
        os.close(fd)


async def test_a_program_that_holds_its_output_at_once_delays_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens its pipe once more, and ends: the server is the last who has it as it was given."""
    memory, gone = HeldMemory(), list[threading.Thread]()

    def spawned(
        argv: Sequence[str],
        cwd: str,
        env: Mapping[str, str],
        streams: tuple[int, int, int],
        *_: Any,
    ) -> int:
        pid = spawn(argv, cwd, env, streams)
        with contextlib.suppress(ChildProcessError):  # its end was taken up
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        again = os.open(f"/proc/self/fd/{streams[1]}", os.O_WRONLY)

        def write() -> None:
            memory.write(again)
            os.close(again)

        gone.append(threading.Thread(target=write))
        gone[0].start()
        memory.await_fault()
        return pid

    monkeypatch.setattr(processes, "spawn", spawned)
    programs = Programs(installed_reaper(), Activity())
    env = {"PATH": os.environ["PATH"]}
    job, _ = programs.start("p", b"", Order(("true",), str(tmp_path), env, Policy()))
    await job.begun
    await turns(memory)
    memory.release()
    await job.done
    gone[0].join()
    await programs.close()


async def test_a_terminal_whose_size_is_held_is_resized_later(tmp_path: Path) -> None:
    order = Order(("true",), str(tmp_path), {}, Policy(), (80, 24))
    program = Program("p", b"", order, installed_reaper())
    program.leader = os.getpid()
    ours, theirs = open_terminal(80, 24)
    program._terminal = ours
    with held(theirs, HeldMemory.size) as memory:
        resizing = asyncio.create_task(program.resize(90, 30))
        await turns(memory)
        memory.release()
        await resizing
    assert os.get_terminal_size(theirs) == (90, 30)
    for fd in (ours, theirs):
        os.close(fd)


async def test_a_terminal_whose_size_is_held_before_it_has_one_delays_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that opens every terminal that comes is quicker as a rule."""
    open_pair, holding = os.openpty, contextlib.ExitStack()
    opened = list[HeldMemory]()

    def taken() -> tuple[int, int]:
        ours, theirs = open_pair()
        opened.append(holding.enter_context(held(theirs, HeldMemory.size)))
        return ours, theirs

    monkeypatch.setattr(os, "openpty", taken)
    programs = Programs(installed_reaper(), Activity())
    order = Order(("stty", "size"), str(tmp_path), {"PATH": os.environ["PATH"]}, Policy(), (90, 30))
    with holding:
        job, _ = programs.start("p", b"", order)
        await until(lambda: bool(opened), pause=0.001)
        await turns(opened[0])
        opened[0].release()
        await job.done
    piece = await job.store.at(0)
    assert isinstance(piece, Piece)
    assert bytes(piece.data) == b"30 90\r\n"
    await programs.close()


async def test_a_launcher_whose_word_is_held_is_waited_for_no_longer(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "FLUSH_SECONDS", 0.05)
    before = descriptors()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answer, report = os.pipe()
    os.set_blocking(answer, False)
    os.write(report, b"2")
    with held(report) as memory:
        assert await terminal.launched(answer, ended, hands) == b"?"
        assert not memory.released.is_set()
    os.close(report)
    assert await let_go(hands) <= before


def one_in(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


async def test_a_shells_directory_that_is_held_is_waited_for_once(tmp_path: Path) -> None:
    """To make a command's files takes a thread as long as to run it, so as a rule none does."""
    reaper = installed_reaper()
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    one = Shell("one", tmp_path, reaper)
    await one.open(str(tmp_path), {"PATH": os.environ["PATH"]})
    directory = os.open(one_in(tmp_path), os.O_RDONLY)
    with held(directory, HeldMemory.list) as memory:
        threading.Timer(2 * WARY_SECONDS, memory.release).start()
        assert (await one.run("echo on", 20, never)).output == "on\n"
        assert memory.released.is_set()
    os.lseek(directory, 0, os.SEEK_SET)
    with held(directory, HeldMemory.list) as memory:
        running = asyncio.create_task(one.run("echo on", 20, never))
        await turns(memory)
        memory.release()
        assert (await running).output == "on\n"
    os.close(directory)
    await one.retire()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["a-program", "a-tools-command", "a-shells-command"])
def test_a_tool_that_holds_its_output_holds_up_nobody(
    claimed: Sandbox, tools: Tools, tmp_path: Path, kind: str
) -> None:
    holds = tmp_path / "holds"
    command = f"exec {sys.executable} {held_memory.__file__} {holds}"
    with claimed.worker() as channel:
        running: object
        jobs, runtime = Jobs(channel), exec_pb2_grpc.RuntimeStub(channel)
        if kind == "a-program":
            running = jobs.start("bash", "-c", command, process_id="held")
        elif kind == "a-shells-command":
            jobs.open("held")
            running = jobs.run("held", command, timeout=1)
        else:
            request = exec_pb2.CallRequest(request_id="held", context_id="held", tool="bash")
            request.input.update({"command": command, "timeout_ms": 1000})
            running = tools.stub.Call(request, timeout=60)
        # It is ended when nobody has it any more.
        assert running
        eventually(holds.exists)
        for _ in range(20):
            assert runtime.Info(exec_pb2.InfoRequest(), timeout=5).boot_id
            assert tools.bash("echo on") == "on"
        if kind == "a-program":
            jobs.signal("held", signal.SIGKILL)
            assert jobs.wait("held").HasField("exit")
    assert tools.bash("echo on") == "on"
