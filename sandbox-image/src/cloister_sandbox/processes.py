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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .births import BIRTHS
from .hands import Hands
from .kin import CHILDREN_ARE_LISTED, MARK, begin_tree, orphans, signal_all
from .spawn import nothing, spawn, yield_to_server
from .unended import Unended

_REAPED = 1000
"""Processes that are reaped in one go: tools can make more as fast, and calls must go on."""
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
    """Bytes; never less than what this server had when it started the process, see reap."""


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
            future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
            over = self._unclaimed.pop(pid, None)
            if _is_child(pid):
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
        if leader in self._waiting:  # nobody can be looked for; this number is still its own
            signal_all((leader, -leader), signal.SIGKILL)
        await asyncio.wait([ended], timeout=REAP_SECONDS)
        if not ended.done():
            # As nobody was told of its end, the number is still its own.
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
        if not self._due:
            self._round()

    def _round(self) -> None:
        """Another one follows where more have ended than it takes."""
        self._due = False
        for _ in range(_REAPED):
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # The kernel counts the memory of the process that started it, whose memory it borrows
            # until it runs its own program, as a process's own.
            ended = Ended(
                os.waitstatus_to_exitcode(status),
                usage.ru_utime + usage.ru_stime,
                usage.ru_maxrss * 1024,
            )
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
        self._due = True
        asyncio.get_running_loop().call_soon(self._round)


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
