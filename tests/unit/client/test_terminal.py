"""`cloister shell` on a real terminal, and what `cloister exec` and `cloister ps` pass on."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import cloister
from cloister.cli import main
from cloister.cli.terminal import escape_key
from support.eventually import until
from support.fake_sessions import FakeSessions
from support.fault_proxy import FaultProxy, fault_proxy
from support.sandbox_server import Sandbox

Out = pytest.CaptureFixture[str]


class Screen:
    """A terminal with a `cloister` command on it."""

    def __init__(self, arguments: list[str], kubeconfig: str, *, rows: int, columns: int) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        path = ":".join(each for each in sys.path if each)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cloister", *arguments],
            env={"PYTHONPATH": path, "KUBECONFIG": kubeconfig, "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.set_blocking(self.ours, False)
        self.shown = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    async def shows(self, text: str) -> str:
        """Wait until it is on the screen; returns everything before, and forgets it."""

        def found() -> bool:
            with contextlib.suppress(BlockingIOError, OSError):
                self.shown += os.read(self.ours, 65_536).decode(errors="replace")
            return text in self.shown

        try:
            await until(found, pause=0.01)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in {self.shown!r}") from None
        before, _, self.shown = self.shown.partition(text)
        return before

    async def ends(self) -> int:
        """Its exit code; the terminal must be as it was before."""
        await until(lambda: self.process.poll() is not None, pause=0.01)
        assert termios.tcgetattr(self.theirs) == self.before
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
async def proxy(server: Sandbox, sessions: FakeSessions) -> AsyncIterator[FaultProxy]:
    """Stands between the command and the exec server."""
    async with fault_proxy(server.port) as made:
        sessions.endpoint = f"127.0.0.1:{made.port}"
        sessions.relay_port = made.port
        yield made


@pytest.fixture
async def session(proxy: FaultProxy, kubeconfig: str) -> AsyncIterator[cloister.AsyncSession]:
    """The session of the command; what is left running in it is ended."""
    async with (
        cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client,
        await client.create_session("env", name="mine") as made,
    ):
        yield made
        for each in await made.processes():
            process = await made.attach(each.id)
            if each.running:
                await process.stop()
            await process.release()


@pytest.fixture
def screens(kubeconfig: str) -> Iterator["Screens"]:
    """Opens terminals and closes them."""
    with contextlib.ExitStack() as stack:
        yield Screens(kubeconfig, stack)


class Screens:
    """Runs `cloister` commands on terminals of their own."""

    def __init__(self, kubeconfig: str, stack: contextlib.ExitStack) -> None:
        self._kubeconfig = kubeconfig
        self._stack = stack

    def __call__(self, *arguments: str, rows: int = 20, columns: int = 90) -> Screen:
        screen = Screen(list(arguments), self._kubeconfig, rows=rows, columns=columns)
        self._stack.callback(screen.close)
        return screen


async def test_a_shell_on_a_terminal(session: cloister.AsyncSession, screens: Screens) -> None:
    screen = screens("shell", "mine")
    screen.type("stty size; echo $TERM.\r")
    await screen.shows("20 90")
    await screen.shows("xterm.")
    screen.resize(33, 77)
    # The kernel tells it to a terminal's own processes; this one belongs to the test.
    screen.process.send_signal(signal.SIGWINCH)
    screen.type(
        "trap : WINCH; until [ \"$(stty size)\" = '33 77' ]; do sleep 0.02; done; echo f\\it\r"
    )
    await screen.shows("fit")
    screen.type("sh -c 'echo r\\un; exec sleep 600'\r")
    await screen.shows("run")
    screen.type("\x03")
    # What is typed before the interrupt has arrived goes with what it interrupts.
    await screen.shows("# ")
    screen.type("echo co\\de=$?\r")
    await screen.shows("code=130")
    screen.type("exit 5\r")
    assert await screen.ends() == 5
    assert [each for each in await session.processes() if each.running] == []


async def test_a_lost_connection_is_told_and_repaired(
    session: cloister.AsyncSession, screens: Screens, proxy: FaultProxy
) -> None:
    screen = screens("shell", "mine", "--", "bash", "--norc")
    screen.type("PS1=; echo re\\ady\r")
    await screen.shows("ready")
    assert proxy.cut() == 1
    await screen.shows("connection is lost")
    await screen.shows("connected again")
    screen.type("echo st\\ill; exit 3\r")
    await screen.shows("still")
    assert await screen.ends() == 3


async def test_detach_and_attach(
    session: cloister.AsyncSession, screens: Screens, tmp_path: Path
) -> None:
    first = screens("shell", "mine")
    first.type("x=kept; echo be\\fore\r")
    await first.shows("before")
    first.type("\x1d")
    await first.shows("Attach again with: cloister shell mine --attach ")
    assert await first.ends() == 0
    (running,) = await session.processes()
    assert running.running
    await first.shows(running.id)
    second = screens("shell", "mine", "--attach", running.id, "--escape", "none")
    await second.shows("before")
    second.type("\x1d")
    second.type("\x15echo [$x]\r")
    await second.shows("[kept]")
    second.process.send_signal(signal.SIGTERM)
    await second.shows("it goes on")
    assert await second.ends() == 128 + signal.SIGTERM
    third = screens("shell", "mine", "--attach", running.id)
    third.type("exit 4\r")
    assert await third.ends() == 4
    fourth = screens("shell", "mine", "--attach", running.id)
    await fourth.shows("nothing with this id")
    assert await fourth.ends() == 1


async def test_what_cannot_be_started(session: cloister.AsyncSession, screens: Screens) -> None:
    screen = screens("shell", "mine", "--", "nothing-of-this-name", "x")
    await screen.shows("nothing-of-this-name: No such file or directory")
    assert await screen.ends() == 1


@pytest.mark.usefixtures("session")
async def test_interrupting_exec_on_a_terminal(screens: Screens) -> None:
    screen = screens("exec", "mine", "--", "echo up; sleep 600")
    await screen.shows("up")
    screen.process.send_signal(signal.SIGINT)
    assert await screen.ends() == 130


def test_shell_needs_a_terminal(
    sessions: FakeSessions, kubeconfig: str, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    main(["session", "create", "env", "--name", "mine"])
    capsys.readouterr()
    assert main(["shell", "mine"]) == 1
    assert "use cloister exec" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "key"), [("^]", 0x1D), ("^t", 0x14), ("^@", 0), ("^_", 0x1F), ("none", None)]
)
def test_escape_keys(text: str, key: int | None) -> None:
    assert escape_key(text) == key


@pytest.mark.parametrize("text", ["", "]", "^", "^1", "^]]", "^`", "None"])
def test_no_escape_keys(text: str, capsys: Out) -> None:
    with pytest.raises(SystemExit):
        main(["shell", "mine", "--escape", text])
    assert "is no key such as ^]" in capsys.readouterr().err


def test_exec_passes_bytes_on(
    sessions: FakeSessions,
    kubeconfig: str,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    main(["session", "create", "env", "--name", "mine"])
    content = bytes(range(256)) * 8000
    typed = tmp_path / "typed"
    typed.write_bytes(content)

    def execute(*arguments: str) -> tuple[int, bytes, bytes]:
        capsysbinary.readouterr()
        with typed.open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            code = main(["exec", "mine", *arguments])
        return code, *capsysbinary.readouterr()

    code, out, err = execute("--", "cat; echo err >&2; exit 7")
    assert (code, out == content, err) == (7, True, b"err\n")
    assert execute("--no-stdin", "--", "cat") == (0, b"", b"")
    assert execute("--", "head", "-c", "3") == (0, content[:3], b"")
    code, out, err = execute("--timeout", "1s", "--", "echo begun; sleep 600")
    assert (code, out) == (128 + signal.SIGINT, b"begun\n")
    assert err == b"cloister: the command's time was used up and it was stopped\n"
    code, out, err = execute("--", "nothing-of-this-name", "x")
    assert (code, out) == (127, b"")
    assert err == b"cloister: nothing-of-this-name: No such file or directory\n"
    assert main(["ps", "mine"]) == 0
    assert capsysbinary.readouterr().err == b"nothing runs or is kept in session mine\n"


def test_exec_ends_when_its_reader_does(
    sessions: FakeSessions, kubeconfig: str, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    main(["session", "create", "env", "--name", "mine"])
    path = ":".join(each for each in sys.path if each)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m cloister exec mine -- yes | head -1"],
        env={"PYTHONPATH": path, "KUBECONFIG": kubeconfig, "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"y\n", b"")
    capsys.readouterr()
    assert main(["ps", "mine", "-o", "json"]) == 0
    assert capsys.readouterr().out == "[]\n"


async def test_ps(
    session: cloister.AsyncSession, kubeconfig: str, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    await session.start(["sleep", "600"], process_id="one")
    await (await session.start(["bash", "-c", "exit 3"], process_id="two")).result()
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    assert await asyncio.to_thread(main, ["ps", "mine"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["ID", "STATE", "EXIT", "AGE", "COMMAND"]
    assert table[1].split()[:3] == ["one", "running", "-"]
    assert table[1].split()[-2:] == ["sleep", "600"]
    assert table[2].split()[:3] == ["two", "exited", "3"]
    assert await asyncio.to_thread(main, ["ps", "mine", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(each["id"], each["running"]) for each in listed] == [("one", True), ("two", False)]
    assert (listed[0]["exit"], listed[1]["exit"]["code"]) == (None, 3)
