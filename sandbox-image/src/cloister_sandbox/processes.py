"""Processes of tools: starting them, and reaping them and orphans.

The server is PID 1 of its container, so orphans become its children. One owner reaps all of them
when the kernel tells of one. It passes the statuses of processes that were started here to who
waits.
"""

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .births import BIRTHS
from .hands import Hands
from .kin import CHILDREN_ARE_LISTED, MARK, begin_tree, orphans, signal_all
from .spawn import nothing, spawn, yield_to_server
from .unended import Unended
from .wakes import wake

_REAPED = 1000
"""Processes that are reaped in one go: tools can make more as fast, and calls must go on."""
_REAP_AT_ONCE = 0.01
"""Seconds after which calls go on. Whoever reaps a process also takes from memory what was looked
up of it below /proc: a second for each 200,000 descriptors, say, that a tool had and looked at.
"""
_UNCLAIMED = 16_384
"""Ends that are kept for who starts programs: a start that the kernel holds back takes a minute."""
REAP_SECONDS = 2.0
"""In which the end of what was killed must have been told."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; a negative one is the signal that ended it."""
    cpu: float
    """Seconds of processor time, with the children it waited for."""
    max_rss: int
    """Bytes; never less than what this server had when it started the process, see `_ended`."""


_Ends: TypeAlias = tuple[list[tuple[int, Ended]], bool]
"""Those of some processes, by pid, and whether there may be more."""


class Reaper:
    """The only caller of wait in this process."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Ended]] = {}
        self._unclaimed: dict[int, Ended] = {}
        self._starting = 0
        self._due = False
        """Whether the next round is on its way: tools can make thousands of ends in a moment, and
        were each to begin rounds of its own, the event loop would have time for nothing else.
        """
        self._away: asyncio.Future[None] | None = None
        """Done when a thread's round is: what that reaped is known to nobody before."""
        self._told = False
        """Whether there may be more since that round began."""
        self.hands = Hands("hands")
        """Start programs, and read what they print."""
        self.unended = Unended()

    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdin: int,
        pass_fds: Sequence[int],
        theirs: contextlib.ExitStack | None = None,
    ) -> "tuple[int, asyncio.Future[int]]":
        """Start a program as the leader of a session of its own.

        Returns its pid and a future of its exit code, where a negative one is the signal that
        ended it. Raises OSError when it cannot be started. `theirs` is closed by a thread when the
        program has its descriptors, or cannot have them: the last who closes a pipe may be held up.
        """
        pid, ended = await self.launch(
            argv, cwd=cwd, env=env, stdin=stdin, pass_fds=pass_fds, theirs=theirs
        )
        code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(lambda done: code.set_result(done.result().code))
        return pid, code

    async def launch(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdin: int,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
        theirs: contextlib.ExitStack | None = None,
    ) -> "tuple[int, asyncio.Future[Ended]]":
        """As `start`, for who wants the output and more than the exit code."""
        self._starting += 1
        try:
            streams = (
                stdin,
                nothing() if stdout is None else stdout,
                nothing() if stderr is None else stderr,
            )
            begin = functools.partial(_begin, argv, cwd, env, streams, pass_fds)
            pid = await self.hands.run(begin, theirs.close if theirs is not None else None)
            if pid in self._waiting and self._away is not None:
                # Who had this number before was reaped in that round.
                await asyncio.wait([self._away])
            child = _is_child(pid)
            if not child and self._away is not None:
                # Its end is told with that round, or was.
                await asyncio.wait([self._away])
            future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
            over = self._unclaimed.pop(pid, None)
            if child:
                self._waiting[pid] = future
            else:
                # How it ended is not known where more orphans did since than are kept.
                future.set_result(over or Ended(-signal.SIGKILL, 0.0, 0))
            return pid, future
        finally:
            self._starting -= 1
            if not self._starting:
                self._unclaimed.clear()

    async def end(self, leader: int, mark: str, ended: "asyncio.Future[Any] | None") -> None:
        """End a program with all that it started; `ended` is its future, of `start` or `launch`, if
        there is one yet.

        It is done afterwards, also where the kernel does not tell: a tool that traces a program may
        keep its end to itself, and who waits for a disk that is gone cannot be ended. Such a one
        counts as ended by SIGKILL.
        """
        await self.unended.end(leader, mark)
        if ended is None or ended.done():
            return
        if leader in self._waiting and _is_child(leader):  # nobody can be looked for
            signal_all((leader, -leader), signal.SIGKILL)
        await asyncio.wait([ended], timeout=REAP_SECONDS)
        if not ended.done():
            future = self._waiting.pop(leader, None)
            if future is not None and not future.done():
                future.set_result(Ended(-signal.SIGKILL, 0.0, 0))
            await asyncio.wait([ended])

    def has_orphans(self) -> bool:
        """Whether processes came to this one whose parents are gone; True where nobody can tell."""
        if not CHILDREN_ARE_LISTED:
            return True
        return any(pid not in self._waiting for pid in orphans())

    def reap(self) -> None:
        """Take up every child that has ended. Called on the event loop, whenever one may have."""
        if self._away is not None:
            self._told = True
        elif not self._due:
            self._round()

    def _round(self, apart: bool = False) -> None:
        """Another one follows where more have ended than it takes.

        Where that took long, threads do it (`apart`) until nobody is left to be reaped.
        """
        self._due = False
        if not (apart or self.hands.wary):
            ends, more = self.hands.timed(_ended)
            self._take_up(ends)
            if more:
                self._again(len(ends) < _REAPED)
            return
        away: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def took(found: _Ends | Exception) -> None:
            self._away = None
            wake(away)
            ends, more = ([], False) if isinstance(found, Exception) else found
            self._take_up(ends)
            if ends or more or self._told:
                self._again(True)

        self.hands.hand_in(_ended, took)
        self._away, self._told = away, False

    def _again(self, apart: bool) -> None:
        self._due = True
        asyncio.get_running_loop().call_soon(self._round, apart)

    def _take_up(self, ends: list[tuple[int, Ended]]) -> None:
        """Tell who waits for them."""
        for pid, ended in ends:
            future = self._waiting.pop(pid, None)
            if future is None:
                # An orphan; or a program that ended before `start` learned its pid, which is why
                # codes are kept while one starts, and no longer, because pids come again.
                if self._starting:
                    self._unclaimed.pop(pid, None)
                    self._unclaimed[pid] = ended
                    if len(self._unclaimed) > _UNCLAIMED:
                        del self._unclaimed[next(iter(self._unclaimed))]
            elif not future.done():
                future.set_result(ended)


def _ended() -> _Ends:
    """Reap who has ended, as far as that is soon done."""
    found: list[tuple[int, Ended]] = []
    until = time.monotonic() + _REAP_AT_ONCE
    while len(found) < _REAPED:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return found, False
        if pid == 0:
            return found, False
        # The kernel counts the memory of the process that started it, whose memory it borrows until
        # it runs its own program, as a process's own.
        code, seconds = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        found.append((pid, Ended(code, seconds, usage.ru_maxrss * 1024)))
        if time.monotonic() > until:
            break
    return found, True


def _is_child(pid: int) -> bool:
    """Whether a process is a child of this one, and was not reaped: what ended under its number was
    another, of a tool perhaps, which can make numbers come again quickly.
    """
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _begin(
    argv: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    streams: tuple[int, int, int],
    pass_fds: Sequence[int],
) -> int:
    """Start a program that is marked, and that the kernel takes before the server when memory
    runs out; returns its pid.
    """
    with BIRTHS.one():
        pid = spawn(argv, cwd, env, streams, pass_fds)
        if MARK in env:
            # At once: as a rule the program is still being loaded, and has started nothing.
            begin_tree(pid, env[MARK])
    yield_to_server(pid)
    return pid
