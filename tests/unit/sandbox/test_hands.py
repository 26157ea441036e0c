"""Threads that start programs: where those are found, what they inherit, and that what is held up
delays nothing else.
"""

import asyncio
import fcntl
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister_api.turns import turn
from cloister_sandbox.hands import STALLED_SECONDS, THREADS, Hands
from cloister_sandbox.spawn import nothing, spawn
from support.eventually import until
from support.file_calls import eventually

PATH = "/usr/bin:/bin"


def output(argv: list[str], cwd: Path, env: dict[str, str]) -> str:
    """What a program prints."""
    read, write = os.pipe()
    try:
        pid = spawn(argv, str(cwd), env, (nothing(), write, write))
    finally:
        os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def script(path: Path, words: str) -> Path:
    """A program of one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return path


def test_a_program_is_looked_for_in_its_own_path(tmp_path: Path) -> None:
    script(tmp_path / "first" / "tool", "echo first").chmod(0o644)
    script(tmp_path / "second" / "tool", "echo second")
    script(tmp_path / "cwd" / "bin" / "tool", "echo third")
    places = f"{tmp_path}/none:{tmp_path}/first:{tmp_path}/second"
    assert output(["tool"], tmp_path, {"PATH": places}) == "second\n"
    assert output(["tool"], tmp_path / "cwd", {"PATH": "bin"}) == "third\n"
    assert output(["bin/tool"], tmp_path / "cwd", {}) == "third\n"
    with pytest.raises(PermissionError):
        spawn(["tool"], str(tmp_path), {"PATH": f"{tmp_path}/first"}, (0, 1, 2))
    with pytest.raises(FileNotFoundError) as missing:
        spawn(["tool"], str(tmp_path), {"PATH": PATH}, (0, 1, 2))
    assert missing.value.filename == "tool"
    with pytest.raises(FileNotFoundError) as astray:
        spawn(["true"], str(tmp_path / "none"), {"PATH": PATH}, (0, 1, 2))
    assert astray.value.filename == str(tmp_path / "none")


@pytest.mark.parametrize("field", ["argument", "variable", "directory"])
def test_no_word_is_cut_at_a_nul_character(field: str, tmp_path: Path) -> None:
    argv = ["echo", "a\0b" if field == "argument" else "a"]
    env = {"PATH": PATH, "A": "a\0b" if field == "variable" else "a"}
    cwd = f"{tmp_path}\0x" if field == "directory" else str(tmp_path)
    with pytest.raises(ValueError, match="NUL"):
        spawn(argv, cwd, env, (0, 1, 2))


def test_nothing_is_inherited_but_what_is_given(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    try:
        status = output(["cat", "/proc/self/status"], tmp_path, {"PATH": PATH})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    masks = {
        name: int(value, 16)
        for name, _, value in (line.partition(":\t") for line in status.splitlines())
        if name in ("SigBlk", "SigIgn")
    }
    # The C library keeps two signals above the ordinary ones to itself.
    assert {name: mask & ((1 << 31) - 1) for name, mask in masks.items()} == {
        "SigBlk": 0,
        "SigIgn": 0,
    }
    with open(os.devnull) as ours:  # noqa: PTH123
        os.set_inheritable(ours.fileno(), True)
        assert output(["ls", "/proc/self/fd"], tmp_path, {"PATH": PATH}).split() == list("0123")
    assert output(["env"], tmp_path, {"PATH": PATH}) == f"PATH={PATH}\n"


async def test_a_program_that_the_kernel_holds_back_delays_no_other(tmp_path: Path) -> None:
    leased = tmp_path / "leased"
    shutil.copy("/bin/true", leased)

    def starting(program: str) -> Callable[[], int]:
        return lambda: spawn([program], str(tmp_path), {"PATH": PATH}, (nothing(),) * 3)

    starts = Hands("hands")
    async with asyncio.timeout(30):
        with open(leased, "r+b") as holder:  # noqa: PTH123, ASYNC230 - a descriptor to lease
            told = threading.Event()
            before = signal.signal(signal.SIGIO, lambda *_: told.set())
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            try:
                held = asyncio.create_task(starts.run(starting(str(leased))))
                assert await asyncio.to_thread(told.wait, 10)
                pids = await asyncio.gather(*(starts.run(starting("true")) for _ in range(20)))
                assert not held.done()
            finally:
                fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                signal.signal(signal.SIGIO, before)
            # The file is still open for writing, and so cannot run.
            with pytest.raises(OSError, match="busy"):
                await held
    for pid in pids:
        assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0


async def test_more_starts_than_threads_that_are_held_back_delay_no_other() -> None:
    starts = Hands("hands")
    release = threading.Event()

    def held() -> int:
        release.wait(30)
        return 1

    async with asyncio.timeout(30):
        stuck = [asyncio.create_task(starts.run(held)) for _ in range(3 * THREADS)]
        try:
            await asyncio.sleep(0)
            assert await asyncio.gather(*(starts.run(lambda: 2) for _ in range(20))) == [2] * 20
            assert not any(each.done() for each in stuck)
        finally:
            release.set()
        assert await asyncio.gather(*stuck) == [1] * len(stuck)
    # Those that helped go.
    eventually(lambda: starts._threads == THREADS)


async def test_programs_that_are_held_back_keep_no_turn_from_others() -> None:
    turns = asyncio.Semaphore(1)
    release = asyncio.Event()

    async def held() -> None:
        async with turn(turns, STALLED_SECONDS):
            await release.wait()

    async with asyncio.timeout(30):
        stuck = [asyncio.create_task(held()) for _ in range(3)]
        await asyncio.sleep(0)
        async with turn(turns, STALLED_SECONDS):
            assert not any(each.done() for each in stuck)
        release.set()
        await asyncio.gather(*stuck)
        async with turn(turns, STALLED_SECONDS):
            assert turns.locked(), "no turn was given back twice"


async def test_threads_that_cannot_be_started_are_not_counted_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tool fills the table of processes while the first programs are to start."""
    starts = Hands("hands")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    left: list[int] = []
    async with asyncio.timeout(30):
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            for _ in range(2 * THREADS):
                with pytest.raises(RuntimeError):
                    await starts.run(lambda: 1, lambda: left.append(1))
        assert len(left) == 2 * THREADS, "what it had is closed all the same"
        assert await starts.run(lambda: 2) == 2
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            assert await asyncio.gather(*(starts.run(lambda: 3) for _ in range(20))) == [3] * 20


async def test_a_thread_that_could_not_be_started_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The only one is held up while a tool fills the table of processes; no other work comes."""
    starts = Hands("hands")
    release = threading.Event()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    stuck = asyncio.create_task(starts.run(lambda: release.wait(30)))
    await asyncio.sleep(0)
    assert starts._threads == 1
    try:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            waiting = asyncio.create_task(starts.run(lambda: 4))
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert await waiting == 4
    finally:
        release.set()
    assert await stuck


async def test_every_start_is_answered_however_many_there_are() -> None:
    starts = Hands("hands")

    def number(which: int) -> Callable[[], int]:
        return lambda: which

    def fail() -> int:
        raise FileNotFoundError

    async with asyncio.timeout(30):
        found = await asyncio.gather(*(starts.run(number(n)) for n in range(2000)))
        assert found == list(range(2000))
        with pytest.raises(FileNotFoundError):
            await starts.run(fail)
        waiting = asyncio.create_task(starts.run(number(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        assert await starts.run(number(2)) == 2
    eventually(lambda: starts._threads == THREADS)


async def test_what_comes_as_a_thread_is_about_to_go_is_done() -> None:
    """The others are held up, and nothing else comes that would have somebody look."""
    release, done, seen_empty, came = (threading.Event() for _ in range(4))

    class Orders(queue.SimpleQueue[Any]):
        def get_nowait(self) -> Any:
            try:
                return super().get_nowait()
            except queue.Empty:
                if done.is_set():
                    seen_empty.set()
                    came.wait(30)
                raise

    hands = Hands("hands")
    hands._orders = Orders()
    stuck = [asyncio.create_task(hands.run(lambda: release.wait(30))) for _ in range(THREADS)]
    try:
        async with asyncio.timeout(10):
            await until(lambda: hands._busy == THREADS and not hands._orders.qsize())
            await hands.run(done.set)
            assert await asyncio.to_thread(seen_empty.wait, 10)
            await until(lambda: hands._look is None, pause=0.001)
            last = asyncio.create_task(hands.run(lambda: 4))
            await asyncio.sleep(0)
            came.set()
            assert await last == 4
    finally:
        came.set()
        release.set()
    await asyncio.gather(*stuck)


async def test_a_result_that_fails_keeps_no_other_back(caplog: pytest.LogCaptureFixture) -> None:
    hands = Hands("hands")

    def fail(_: object) -> None:
        raise LookupError

    def both() -> int:
        # The second is there before the loop hears of the first.
        hands._results.extend([(fail, None), (other.append, 1)])
        return 2

    other: list[object] = []
    async with asyncio.timeout(10):
        assert await hands.run(both) == 2
    assert other == [1]
    assert "LookupError" in caplog.text
