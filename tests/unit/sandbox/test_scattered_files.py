"""Files that a tool made of a million pieces: to make one empty, or to let its last name go, takes
the kernel a minute, in which the event loop does something else.
"""

# ruff: noqa: ASYNC240 - nothing but the test waits for its loop

import asyncio
import ctypes
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import overflow
from cloister_sandbox.errors import InvalidField
from cloister_sandbox.jobs import Jobs
from cloister_sandbox.overflow import Overflows
from cloister_sandbox.paths import Roots
from cloister_sandbox.services import transfers
from cloister_sandbox.services.files import FilesService
from cloister_sandbox.shell import Shell, ShellError
from cloister_sandbox.shell_files import make_output, remove_output
from cloister_sandbox.shells import Shells
from cloister_sandbox.state import Activity, Phase, ServerState
from cloister_sandbox.threads import aside
from cloister_sandbox.toolset.read import read_at_once
from cloister_sandbox.trees import CHUNK
from support.eventually import until
from support.reaping import installed_reaper

KEEP_SIZE = 1
MIB = 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


async def test_nobody_waits_until_a_long_output_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows = Overflows(str(tmp_path))
    go_on, unlink = threading.Event(), overflows._unlink

    def slow(name: str) -> None:
        go_on.wait()
        unlink(name)

    monkeypatch.setattr(overflows, "_unlink", slow)
    kept = overflows.new("a")
    kept.add(b"x")
    await kept.written()
    monkeypatch.setattr(overflow, "MAX_FILES", 1)
    await overflows.room()
    aside(go_on.wait)
    overflows.forget("a")
    assert Path(kept.path).exists()
    await overflows.room()
    another = overflows.new("b")
    another.add(b"x")
    await another.written()
    overflows.forget("b")
    waiting = asyncio.create_task(overflows.room())
    await asyncio.sleep(0)
    assert not waiting.done(), "who makes more of them waits until some are gone"
    leaving = asyncio.create_task(overflows.room())
    await asyncio.sleep(0)
    leaving.cancel()
    overflows.close()
    go_on.set()
    await waiting
    await until(lambda: not any(tmp_path.iterdir()))


async def test_nobody_waits_until_a_file_goes_that_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_aside: list[Callable[[], object]] = []
    (tmp_path / "stays").touch()
    monkeypatch.setattr(transfers, "aside", laid_aside.append)
    (tmp_path / "f").write_bytes(b"x" * 2 * CHUNK)
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    download = FilesService.Download.__wrapped__.__wrapped__  # type: ignore[attr-defined]
    async for _ in download(files, exec_pb2.DownloadRequest(path="stays"), None):
        pass
    assert not laid_aside, "nothing goes with the end of this one"
    content = b""
    async for chunk in download(files, exec_pb2.DownloadRequest(path="f"), None):
        (tmp_path / "f").unlink(missing_ok=True)
        content += chunk.data
    assert content == b"x" * 2 * CHUNK
    assert len(laid_aside) == 1
    laid_aside[0]()
    await files.close()


async def test_a_shell_touches_no_file_of_another_file_system(tmp_path: Path) -> None:
    """The way to its files is the tools' to change, and its own are in memory: on a disk a tool can
    keep a directory locked for a minute.
    """
    elsewhere = Path("/dev/shm") / f"elsewhere-{tmp_path.name}-{os.getpid()}"
    if not elsewhere.parent.is_dir() or elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system")
    elsewhere.mkdir()
    reaper = installed_reaper()
    shell = Shell("one", tmp_path / "state", reaper)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    try:
        await shell.open(str(tmp_path), {"PATH": os.environ["PATH"]})
        (elsewhere / "command").write_text("a tool's")
        (own,) = (tmp_path / "state").iterdir()
        own.rename(tmp_path / "moved")
        own.symlink_to(elsewhere)
        with pytest.raises(ShellError, match="cannot be used"):
            await shell.run("true", 20, never)
        assert (elsewhere / "command").read_text() == "a tool's"
        await shell.open(str(tmp_path), {"PATH": os.environ["PATH"]})
        assert (await shell.run("echo on", 20, never)).output == "on\n"
        await until(lambda: not any((tmp_path / "moved").iterdir()))
        assert [each.name for each in elsewhere.iterdir()] == ["command"]
    finally:
        await shell.retire()
        shutil.rmtree(elsewhere)


async def test_no_directory_to_open_a_shell_in_is_looked_for_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a tool has the kernel take away such a file, whoever looks into its directory waits."""
    lookers = []

    def isdir(_: str) -> bool:
        lookers.append(threading.current_thread())
        return False

    monkeypatch.setattr(os.path, "isdir", isdir)
    shells = Shells(tmp_path / "state", installed_reaper(), Activity(), Jobs())
    with pytest.raises(InvalidField):
        await shells.open("one", str(tmp_path / "none"), {"PATH": os.environ["PATH"]}, b"")
    assert lookers
    assert threading.main_thread() not in lookers


def test_what_takes_an_outputs_name_is_not_removed(tmp_path: Path) -> None:
    os.close(make_output(str(tmp_path / "out"), -1))
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "out").write_text("a tool's")
    remove_output(str(tmp_path / "out"), -1)
    assert (tmp_path / "out").exists()


def test_a_short_text_with_much_behind_it_is_read_in_a_thread(tmp_path: Path) -> None:
    """A tool may take its last name away while it is read."""
    path = tmp_path / "f"
    path.write_text("short")
    roots = Roots(tmp_path, (), ())
    if read_at_once(roots, {"file_path": "f"}) is None:
        pytest.skip("nothing is read at once here")
    with path.open("r+b") as file:
        numbers = map(ctypes.c_long, (0, MIB))
        if _libc.fallocate(file.fileno(), KEEP_SIZE, *numbers) != 0:
            pytest.skip("no room can be kept here")
    assert read_at_once(roots, {"file_path": "f"}) is None
