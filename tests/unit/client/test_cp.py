"""`cloister cp` as a person sees it."""

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.cli import copying, main
from support.cluster import wait_for
from support.sandbox_server import Sandbox

Out = pytest.CaptureFixture[str]
COMMAND = [sys.executable, "-c", "import sys; from cloister.cli import main; sys.exit(main())"]


@pytest.fixture(autouse=True)
def session(kubeconfig: str, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    """A session called mine, reached from outside of the cluster."""
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    assert main(["session", "create", "env", "--name", "mine"]) == 0
    capsys.readouterr()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    near, far = pty.openpty()
    yield near, far
    os.close(near)


def shown(near: int) -> str:
    """All that was written to the terminal, once nobody has it open any more."""
    out = b""
    while True:
        try:
            data = os.read(near, 65_536)
        except OSError:
            return out.decode()
        if not data:
            return out.decode()
        out += data


def run(arguments: list[str], stderr: int) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [*COMMAND, "cp", *arguments], stderr=stderr, env={**os.environ, "PYTHONPATH": path}
    )


def test_a_terminal_shows_how_far_it_is(
    terminal: tuple[int, int], server: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(40):
        (tmp_path / "tree" / f"f{number}").write_bytes(os.urandom(1_200_000))
    process = run([str(tmp_path / "tree"), "mine:shown"], terminal[1])
    os.close(terminal[1])
    text = shown(terminal[0])
    assert process.wait() == 0
    assert "% " in text
    assert "of 45.8 MiB" in text
    assert "40 files, 45.8 MiB copied in " in text
    assert len(list((server.workspace / "shown").iterdir())) == 40


@pytest.mark.usefixtures("server")
def test_quiet_shows_nothing(terminal: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    process = run(["--quiet", str(tmp_path / "file"), "mine:quiet"], terminal[1])
    os.close(terminal[1])
    assert shown(terminal[0]) == ""
    assert process.wait() == 0


def test_no_terminal_shows_nothing(server: Sandbox, capsys: Out, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    assert main(["cp", str(tmp_path / "file"), "mine:nothing"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.long
def test_an_interrupted_copy_says_how_to_go_on_and_does(server: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    for number in range(60):
        (source / f"f{number}").write_bytes(os.urandom(2_000_000))
    arrived = server.workspace / "stopped"
    process = run([str(source), "mine:stopped"], subprocess.PIPE)
    wait_for("a file arrives", lambda: list(arrived.glob("f*")) or None, 20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"the same command goes on from here" in err
    kept = {each.name: each.stat().st_ino for each in arrived.glob("f*")}
    assert 0 < len(kept) < 60
    assert main(["cp", str(source), "mine:stopped"]) == 0
    assert {each.name for each in arrived.iterdir()} == {f"f{number}" for number in range(60)}
    assert all((arrived / name).stat().st_ino == inode for name, inode in kept.items())


def test_all_copies_everything(server: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_text("x")
    copied = server.workspace / "every" / "tree" / "f"
    assert main(["cp", str(tmp_path / "tree"), "mine:every/"]) == 0
    first = copied.stat().st_ino
    assert main(["cp", str(tmp_path / "tree"), "mine:every/"]) == 0
    assert copied.stat().st_ino == first
    assert main(["cp", "--all", str(tmp_path / "tree"), "mine:every/"]) == 0
    assert copied.stat().st_ino != first


def test_names_do_not_move_the_cursor(server: Sandbox, capsys: Out, tmp_path: Path) -> None:
    (server.workspace / "links").mkdir()
    (server.workspace / "links" / "\x1b[2Jevil\n").symlink_to("nowhere")
    assert main(["cp", "mine:links", str(tmp_path / "links")]) == 0
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "?[2Jevil?" in err
    assert "\x1b" not in copying.line(1, 2, 0, 1.0, "\x1b[2J")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0, None, 0, 0.0, ""), "0 B  0 files"),
        ((512, 1024, 1, 0.0, "a"), " 50%  512 B of 1.0 KiB  1 files  a"),
        (
            (3 * 2**20, 2**30, 2, 2.0**20, "a b"),
            "  0%  3.0 MiB of 1.0 GiB  1.0 MiB/s  17m01s left  2 files  a b",
        ),
        (
            (2**40, 2**42, 9, 2.0**20, "x"),
            " 25%  1.0 TiB of 4.0 TiB  1.0 MiB/s  873h48m left  9 files  x",
        ),
        ((2**20, 2**20 + 1, 1, 1.0, ""), " 99%  1.0 MiB of 1.0 MiB  1 B/s  1s left  1 files"),
        # A file that grew meanwhile.
        ((30, 20, 1, 0.0, ""), "100%  30 B of 20 B  1 files"),
    ],
)
def test_the_line(given: tuple[int, int | None, int, float, str], said: str) -> None:
    assert copying.line(*given) == said


def test_the_line_fits_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(copying, "_EVERY_SECONDS", 0.0)
    out = io.StringIO()
    bar = copying.Bar(out)
    bar.show(0, 100, 0, "n" * 200)
    assert len(out.getvalue().removeprefix("\r\x1b[K")) == 29
    bar.show(100, 100, 1, "n")
    bar.end()
    assert "1 file, 100 B copied in 0." in out.getvalue()
