"""Whose end is whose: numbers of processes come again, and tools can make them come quickly."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from cloister_sandbox import processes
from cloister_sandbox.kin import MARK, kill_tree
from cloister_sandbox.processes import Ended, Reaper
from cloister_sandbox.spawn import nothing
from support.eventually import until
from support.file_calls import eventually
from support.reaping import EndlessEnds, Usage, installed_reaper, no_ends

ENV = {"PATH": os.environ["PATH"]}


async def launch(reaper: Reaper, *argv: str) -> "asyncio.Future[Ended]":
    return (await reaper.launch(argv, cwd="/", env=ENV, stdin=nothing()))[1]


async def test_the_end_of_an_orphan_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a program starts, one that had its number before ends: a tool chose its status."""
    reaper = installed_reaper()
    begin = processes._begin

    def held_back(argv: Sequence[str], cwd: str, env: Mapping[str, str], *rest: Any) -> int:
        pid = begin(argv, cwd, env, *rest)
        reaper._unclaimed[pid] = Ended(0, 0.0, 0)
        return pid

    monkeypatch.setattr(processes, "_begin", held_back)
    async with asyncio.timeout(30):
        assert (await (await launch(reaper, "sh", "-c", "sleep 0.3; exit 3"))).code == 3


async def test_a_program_that_ends_before_its_number_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reaper = installed_reaper()
    begin = processes._begin

    def late(argv: Sequence[str], cwd: str, env: Mapping[str, str], *rest: Any) -> int:
        pid = begin(argv, cwd, env, *rest)
        eventually(lambda: pid in reaper._unclaimed)
        return pid

    monkeypatch.setattr(processes, "_begin", late)
    async with asyncio.timeout(30):
        assert (await (await launch(reaper, "sh", "-c", "exit 4"))).code == 4


async def test_orphans_that_end_while_a_start_is_held_back_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reaper = Reaper()
    go_on = threading.Event()
    monkeypatch.setattr(processes, "_begin", lambda *_: go_on.wait(30) and 2)
    held = asyncio.create_task(launch(reaper, "held"))
    await asyncio.sleep(0)

    def ends() -> Iterator[tuple[int, int, Usage]]:
        for pid in range(2, 3 * processes._UNCLAIMED):
            yield pid, 0, Usage()
        while True:
            yield 0, 0, Usage()

    told = ends()
    monkeypatch.setattr(processes, "_REAPED", 10**9)
    monkeypatch.setattr(processes, "_REAP_AT_ONCE", 10**9)
    monkeypatch.setattr("cloister_sandbox.processes.os.wait4", lambda *_: next(told))
    reaper.reap()
    assert len(reaper._unclaimed) == processes._UNCLAIMED
    assert 3 * processes._UNCLAIMED - 1 in reaper._unclaimed, "the newest stay"
    assert 2 not in reaper._unclaimed
    go_on.set()
    async with asyncio.timeout(30):
        # How the one that was held back ended is forgotten: it is told to have ended all the same.
        assert (await (await held)).code == -signal.SIGKILL
    assert not reaper._unclaimed


async def test_ends_that_are_told_again_and_again_leave_time_for_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tools can make more of them than are taken; one round follows another, however often."""
    reaper = Reaper()
    ends = EndlessEnds()
    monkeypatch.setattr(processes, "_REAP_AT_ONCE", 10**9)
    monkeypatch.setattr("cloister_sandbox.processes.os.wait4", ends.wait4)
    loop = asyncio.get_running_loop()
    for turn in range(1, 4):
        for _ in range(100):
            loop.call_soon(reaper.reap)
        await asyncio.sleep(0)
        assert ends.told == turn * processes._REAPED
    monkeypatch.setattr("cloister_sandbox.processes.os.wait4", no_ends)


async def test_ends_that_take_long_leave_time_for_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaps a process takes what was looked up of it from memory, too."""
    reaper = Reaper()
    ends = EndlessEnds()
    monkeypatch.setattr(processes, "_REAP_AT_ONCE", 0.0)
    monkeypatch.setattr("cloister_sandbox.processes.os.wait4", ends.wait4)
    reaper.reap()
    assert ends.told == 1
    main, reapers = threading.main_thread(), set[threading.Thread]()

    def told(*_: int) -> tuple[int, int, Usage]:
        reapers.add(threading.current_thread())
        return ends.wait4()

    monkeypatch.setattr("cloister_sandbox.processes.os.wait4", told)
    async with asyncio.timeout(30):
        await until(lambda: ends.told > 3, pause=0.001)
    assert main not in reapers
    monkeypatch.setattr("cloister_sandbox.processes.os.wait4", no_ends)


async def test_the_end_of_one_process_that_takes_long_is_left_to_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does a program that starts meanwhile, and ends in the same round, count as killed."""
    reaper = installed_reaper()
    wait4, begin = os.wait4, processes._begin
    begun, go_on = threading.Event(), threading.Event()

    def slow(pid: int, options: int) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        found = wait4(pid, options)
        begun.set()
        assert go_on.wait(30)
        return found

    def ended_in_time(argv: Sequence[str], cwd: str, env: Mapping[str, str], *rest: Any) -> int:
        pid = begin(argv, cwd, env, *rest)
        assert begun.wait(30)
        return pid

    reaper.hands.wary = True
    async with asyncio.timeout(30):
        await (await launch(reaper, "true"))
        monkeypatch.setattr("cloister_sandbox.processes.os.wait4", slow)
        monkeypatch.setattr(processes, "_begin", ended_in_time)
        starting = asyncio.create_task(launch(reaper, "sh", "-c", "exit 5"))
        await until(begun.is_set, pause=0.001)
        assert not starting.done()
        go_on.set()
        assert (await (await starting)).code == 5
        monkeypatch.undo()
        # Who ends while a thread looks is not forgotten.
        ended = [await launch(reaper, "sh", "-c", f"exit {code}") for code in range(20)]
        assert [(await each).code for each in ended] == list(range(20))


async def test_a_number_that_is_used_again_before_its_end_is_told_is_not_confused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread may be held up by one process after it has reaped another."""
    reaper = installed_reaper()
    wait4 = os.wait4
    reaped, go_on = threading.Event(), threading.Event()

    def slow(pid: int, options: int) -> Any:
        found = wait4(pid, options)
        reaped.set()
        assert go_on.wait(30)
        return found

    reaper.hands.wary = True
    async with asyncio.timeout(30):
        until_closed, keep = os.pipe()
        argv = ("sh", "-c", "read -r _; exit 3")
        pid, first = await reaper.launch(argv, cwd="/", env=ENV, stdin=until_closed)
        monkeypatch.setattr("cloister_sandbox.processes.os.wait4", slow)
        os.close(until_closed)
        os.close(keep)
        await until(reaped.is_set, pause=0.001)
        monkeypatch.setattr(processes, "_begin", lambda *_: pid)
        monkeypatch.setattr(processes, "_is_child", lambda _: True)
        starting = asyncio.create_task(launch(reaper, "other"))
        await asyncio.sleep(0)
        await reaper.hands.run(int)  # by the same thread, after that start
        assert not starting.done()
        go_on.set()
        assert (await first).code == 3
        second = await starting
        assert not second.done()
        reaper._take_up([(pid, Ended(7, 0.0, 0))])
        assert (await second).code == 7


async def test_what_waits_for_a_disk_keeps_nobody_from_ending_processes() -> None:
    """Spools and directories of shells are read, written and removed in threads, too."""
    reaper = installed_reaper()
    go_on = threading.Event()
    async with asyncio.timeout(60):
        pid, ended = await reaper.launch(
            ["sleep", "300"], cwd="/", env={**ENV, MARK: "tree"}, stdin=nothing()
        )
        waiting = [asyncio.create_task(asyncio.to_thread(go_on.wait)) for _ in range(64)]
        try:
            await asyncio.sleep(0)
            assert await kill_tree(pid, "tree") == []
            assert (await ended).code == -signal.SIGKILL
        finally:
            go_on.set()
        await asyncio.gather(*waiting)
