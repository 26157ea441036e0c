"""What the kernel lets a tool do to whoever looks at it, or closes what it has open."""

import asyncio
import contextlib
import ctypes
import errno
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cloister_sandbox import kin
from cloister_sandbox.framing import STATUS
from cloister_sandbox.shell import Shell, ShellError
from support.eventually import until
from support.memory import grows_by_less_than
from support.reaping import installed_reaper

pytestmark = pytest.mark.long

MIB = 1024 * 1024
_PIDFD_GETFD = 438
SAYS_MUCH = """
import ctypes, mmap, os, struct, sys, time
SET_MM, SET_MM_MAP, PRIVATE, ANONYMOUS, NO_RESERVE = 35, 14, 0x2, 0x20, 0x4000
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.sbrk.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
size = int(sys.argv[1])
at = libc.mmap(None, size, mmap.PROT_READ, PRIVATE | ANONYMOUS | NO_RESERVE, 2**64 - 1, 0)
line = open("/proc/self/stat").read()
fields = [int(each) for each in line[line.rindex(")") + 3 :].split()]
code, stack, data, words = fields[22:24], fields[24], fields[41:44], fields[44:46]
shown = [*code, *data, libc.sbrk(0), stack, *words, at, at + size, 0]
map_ = struct.pack("@12QII", *shown, 0, 2**32 - 1)
if libc.prctl(SET_MM, SET_MM_MAP, map_, len(map_), 0):
    print(os.strerror(ctypes.get_errno()), flush=True)
print("on", flush=True)
time.sleep(600)
"""


def test_variables_without_end_take_no_memory(tmp_path: Path) -> None:
    """A process needs no right to say that all of its memory is its variables."""
    script = tmp_path / "says.py"
    script.write_text(SAYS_MUCH)
    variables = {"PATH": os.environ["PATH"], kin.MARK: "honest"}
    with subprocess.Popen(
        [sys.executable, str(script), str(1024 * MIB)], env=variables, stdout=subprocess.PIPE
    ) as liar:
        try:
            assert liar.stdout is not None
            said = liar.stdout.readline()
            if said != b"on\n":
                pytest.skip(f"this kernel does not let it: {said.decode().strip()}")
            with grows_by_less_than(os.getpid(), 64 * MIB):
                assert kin._marked(liar.pid) == set()
        finally:
            liar.kill()
    # A program's descriptors are closed before the kernel shows its variables: it has to speak.
    speaks = ["sh", "-c", "echo on; read -r end"]
    with subprocess.Popen(
        speaks, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as honest:
        try:
            assert honest.stdout is not None
            assert honest.stdout.readline() == b"on\n"
            assert kin._marked(honest.pid) == {"honest"}
        finally:
            honest.kill()


@pytest.mark.parametrize(
    ("names", "in_time"), [((kin.MARK, "LONG"), {"it"}), (("LONG", kin.MARK), set())]
)
def test_who_keeps_its_variables_from_being_read_delays_no_end(
    names: tuple[str, str], in_time: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reads them by pages, and waits for each of them while the process changes what
    memory it has: a second, as often as there are pages.
    """
    seconds = itertools.count()

    class Clock:
        monotonic = staticmethod(lambda: float(next(seconds)))

    values = {kin.MARK: "it", "LONG": "x" * 100_000}
    with subprocess.Popen(
        ["/bin/sh", "-c", "echo on; read -r end"],
        env={name: values[name] for name in names},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as slow:
        try:
            assert slow.stdout is not None
            assert slow.stdout.readline() == b"on\n"
            assert kin._marked(slow.pid) == {"it"}
            monkeypatch.setattr(kin, "time", Clock)
            assert kin._marked(slow.pid) == in_time
        finally:
            slow.kill()


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Callable[[str], Shell]]:
    reaper = installed_reaper()
    made: list[Shell] = []

    def make(name: str) -> Shell:
        made.append(Shell(name, tmp_path, reaper))
        return made[-1]

    yield make
    for each in made:
        await each.retire()


def status_of(one: Shell) -> socket.socket:
    """bash's own end of the socket on which it tells statuses, as a tool can take it."""
    life = os.pidfd_open(one.leader[0])
    try:
        fd = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, life, STATUS, 0)
        assert fd >= 0, os.strerror(ctypes.get_errno())
        return socket.socket(fileno=fd)
    finally:
        os.close(life)


async def test_who_sends_out_of_band_keeps_nobody_busy(
    shell: Callable[[str], Shell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    one = shell("one")
    await one.open(str(tmp_path), {"PATH": os.environ["PATH"]})
    await one.run("true", 20, never)
    assert one._wire is not None
    hear, heard = one._wire.hear, list[bytes | None]()

    def note() -> bytes | None:
        heard.append(hear())
        return heard[-1]

    monkeypatch.setattr(one._wire, "hear", note)
    with status_of(one) as status:
        running = asyncio.create_task(one.run("sleep 300", 1, never))
        await until(lambda: one.output is not None)
        status.send(b"\0", socket.MSG_OOB)
        assert (await running).shell_lost, "it counts as what it is: no report"
    assert len(heard) < 10, "the event loop was told of it again and again"


async def test_who_sends_descriptors_for_statuses_ends_the_shell(
    shell: Callable[[str], Shell], tmp_path: Path
) -> None:
    """To close one takes as long as its last owner likes, as for a connection that is not read."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    one = shell("one")
    await one.open(str(tmp_path), {"PATH": os.environ["PATH"]})
    await one.run("true", 20, never)
    late = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, status_of(one) as status:
        running = asyncio.create_task(one.run("sleep 1", 20, never))
        lingering = socket.create_connection(server.getsockname())
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
        lingering.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while lingering.send(b"x" * MIB):
                pass
        socket.send_fds(status, [b"x"], [lingering.fileno()])
        os.close(lingering.detach())

        def give_up() -> None:
            late.set()
            server.close()

        helper = threading.Timer(10, give_up)
        helper.start()
        result = await running
        helper.cancel()
    assert not late.is_set(), "the event loop waited for the connection"
    assert (result.shell_lost, result.code) == (True, 0)
    await one.open(str(tmp_path), {"PATH": os.environ["PATH"]})
    assert (await one.run("echo on", 20, never)).output == "on\n"


async def test_what_is_told_of_statuses_between_commands_is_passed_over(
    shell: Callable[[str], Shell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each word would cost the server a thousand times what it costs a tool."""
    said: list[str | None] = []
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    one = shell("one")
    await one.open(str(tmp_path), {"PATH": os.environ["PATH"]})
    await one.run("true", 20, never)
    monkeypatch.setattr(one, "_report", said.append)
    with status_of(one) as status:
        status.send(b"\0" * 4000)
        one._read_status()
    assert said == []
    monkeypatch.undo()
    assert (await one.run("echo on", 20, never)).output == "on\n"


async def test_a_shell_that_cannot_be_watched_is_none(
    shell: Callable[[str], Shell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user may wait for so many descriptors with epoll, and tools are that user."""
    env = {"PATH": os.environ["PATH"]}
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    one = shell("one")
    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", full)
    with pytest.raises(ShellError, match="bash cannot be heard"):
        await one.open(str(tmp_path), env)
    assert not one.alive
    monkeypatch.undo()
    await one.open(str(tmp_path), env)
    assert (await one.run("echo on", 20, never)).output == "on\n"


async def test_what_tools_leave_beside_a_shells_files_is_not_removed(
    shell: Callable[[str], Shell], tmp_path: Path
) -> None:
    """It can be more than can be removed while others wait."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    one, clean = shell("one"), shell("clean")
    for each in (one, clean):
        await each.open(str(tmp_path), {"PATH": os.environ["PATH"]})
    found = await one.run('dirname "$(readlink /proc/self/fd/2)"', 20, never)
    kept = Path(found.output.strip())
    (kept / "mine").mkdir()
    for each in (one, clean):
        await each.retire()
    await until(lambda: list(tmp_path.iterdir()) == [kept], pause=0.01)
    await until(lambda: list(kept.iterdir()) == [kept / "mine"], pause=0.01)
