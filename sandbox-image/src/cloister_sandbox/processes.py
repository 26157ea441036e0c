"""Processes of tools: starting them, ending all of a tree, and reaping orphans.

The server is PID 1 of its container, so orphans become its children. One owner reaps all of them:
the SIGCHLD handler. It passes the statuses of processes that were started here to who waits.
"""

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .marks import Marks, number_of
from .rereading import again
from .spawn import nothing, spawn, yield_to_server
from .starts import Starts

T = TypeVar("T")
MARK = "CLOISTER_CONTEXT"
"""Variable that names the tree a program belongs to. Processes that left their parents are found by
it where the kernel gives trees no numbers (see marks)."""
ENDING_SECONDS = 5.0
"""For so long processes that do not end are signalled again."""
_OWN_CHILDREN = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
CHILDREN_ARE_LISTED = Path(_OWN_CHILDREN).exists()
_LISTED = 65_536
_COUNTED = 1000
_REAPED = 1000
"""Processes that are reaped in one go: tools can make more as fast, and calls must go on."""
_CHASES = 20
"""Looks at the list of orphans after each look at the whole table."""
_marks = Marks()


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; a negative one is the signal that ended it."""
    cpu: float
    """Seconds of processor time, with the children it waited for."""
    max_rss: int
    """Bytes; never less than what this server had when it started the process, see _reap."""


class Reaper:
    """The only caller of wait in this process."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Ended]] = {}
        self._unclaimed: dict[int, Ended] = {}
        self._starting = 0
        self._starts = Starts()

    def install(self) -> None:
        """Start reaping on the running event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdin: int,
        pass_fds: Sequence[int],
    ) -> "tuple[int, asyncio.Future[int]]":
        """Start a program as the leader of a session of its own.

        Returns its pid and a future of its exit code, where a negative one is the signal that
        ended it. Raises OSError when it cannot be started.
        """
        pid, ended = await self.launch(argv, cwd=cwd, env=env, stdin=stdin, pass_fds=pass_fds)
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
    ) -> "tuple[int, asyncio.Future[Ended]]":
        """As `start`, for who wants the output and more than the exit code."""
        self._starting += 1
        try:
            streams = (
                stdin,
                nothing() if stdout is None else stdout,
                nothing() if stderr is None else stderr,
            )
            pid = await self._starts.run(
                functools.partial(_begin, argv, cwd, env, streams, pass_fds)
            )
            future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
            if pid in self._unclaimed:
                future.set_result(self._unclaimed.pop(pid))
            else:
                self._waiting[pid] = future
            return pid, future
        finally:
            self._starting -= 1
            if not self._starting:
                self._unclaimed.clear()

    def has_orphans(self) -> bool:
        """Whether processes came to this one whose parents are gone; True where nobody can tell."""
        if not CHILDREN_ARE_LISTED:
            return True
        return any(pid not in self._waiting for pid in orphans())

    def _reap(self) -> None:
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
                    self._unclaimed[pid] = ended
            elif not future.done():
                future.set_result(ended)
        asyncio.get_running_loop().call_soon(self._reap)


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
    pid = spawn(argv, cwd, env, streams, pass_fds)
    if MARK in env:
        # At once: the program is still being loaded, and has started nothing.
        _marks.put(pid, env[MARK])
    yield_to_server(pid)
    return pid


async def in_thread(work: Callable[[], T]) -> T:
    """Run what looks through all processes in a thread.

    Where no thread can be started any more it is done at once: to end processes is what helps.
    """
    try:
        return await asyncio.to_thread(work)
    except RuntimeError:
        return work()


def _table() -> dict[int, tuple[int, int]]:
    """pid -> (parent, session) of every process in sight that has not ended."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = _fields(int(entry.name))
        except OSError:
            continue
        if not _is_over(fields):
            found[int(entry.name)] = (int(fields[1]), int(fields[3]))
    return found


def _is_marked(pid: int, mark: str) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environ.split(b"\0")


def members(
    leader: int, mark: str, number: int = 0, spared: Collection[int] | None = None
) -> list[int]:
    """Every process of a tree: descendants, members of its sessions, and orphans.

    Orphans are known by their number or mark; those whose number is no living tree's count too.
    With `spared`, without the leader, these processes, and what descends from them.
    """
    table = _table()
    me = os.getpid()
    number = number or _marks.number(mark)
    # The pid of a leader that is gone may be another process by now.
    found = {leader} if table.get(leader) == (me, leader) else set()
    found |= {
        pid
        for pid, (parent, _) in table.items()
        if parent == me and pid != me and _belongs(pid, mark, number)
    }
    found = _below(table, found, {leader})
    if spared is not None:
        kept = set(spared).intersection(table)
        found -= _below(table, kept, set(kept)) | {leader}
    return sorted(found)


def _below(table: dict[int, tuple[int, int]], found: set[int], sessions: set[int]) -> set[int]:
    """These processes, their descendants, and the members of sessions that they lead."""
    me = os.getpid()
    while True:
        more = {
            pid
            for pid, (parent, session) in table.items()
            if pid not in found and pid != me and (parent in found or session in sessions)
        }
        if not more:
            return found
        found |= more
        sessions |= {table[pid][1] for pid in more if table[pid][1] in found}


def _belongs(pid: int, mark: str, number: int) -> bool:
    carried = number_of(pid)
    if carried:
        return carried == number or _marks.astray(carried)
    return _is_marked(pid, mark)


def forget_tree(mark: str) -> None:
    """A tree has ended by itself, and nothing of it is left."""
    _marks.forget(mark)


def orphans() -> list[int]:
    """The children of this process, as the kernel lists them; quicker than looking at them all."""
    try:
        return [int(each) for each in again(_OWN_CHILDREN).split()]
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """The children of a process's first thread; none where the kernel does not tell.

    By the bare calls, because every command looks.
    """
    try:
        fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return [int(each) for each in os.read(fd, _LISTED).split()]
    except OSError:
        return []
    finally:
        os.close(fd)


def background(leader: int, mark: str) -> list[int]:
    """The processes of a tree beside its leader, about a thousand at most."""
    if not CHILDREN_ARE_LISTED:
        return [pid for pid in members(leader, mark) if pid != leader][:_COUNTED]
    number = _marks.number(mark)
    pending = children(leader)
    if number:
        pending += [pid for pid in orphans() if pid != leader and number_of(pid) == number]
    found: list[int] = []
    while pending and len(found) < _COUNTED:
        pid = pending.pop()
        below = children(pid)
        if below or not _has_ended(pid):
            found.append(pid)
        pending += below
    return found


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to take notice."""
    try:
        return _is_over(_fields(pid))
    except OSError:
        return True


def _fields(pid: int) -> list[bytes]:
    """What the kernel says of a process behind its name, which may be any bytes; raises OSError."""
    line = Path(f"/proc/{pid}/stat").read_bytes()
    return line[line.rindex(b")") + 2 :].split()


def _is_over(fields: list[bytes]) -> bool:
    # One whose first thread has ended may go on in another.
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


async def kill_tree(leader: int, mark: str) -> list[int]:
    """End every process of a tree; returns those that would not end."""
    return await _end(leader, mark, _marks.forget(mark), None)


async def kill_started(leader: int, mark: str, spared: Collection[int]) -> list[int]:
    """End a tree but for its leader, some of its processes, and what descends from those.

    Returns what would not end.
    """
    return await _end(leader, mark, _marks.number(mark), spared)


async def _end(leader: int, mark: str, number: int, spared: Collection[int] | None) -> list[int]:
    """Stopped first, so that none can start another while the rest is looked up; looked up again
    until nothing is left, because a process may have been in the middle of starting one.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        try:
            found = await in_thread(functools.partial(_strike, leader, mark, number, spared))
        except OSError:
            # Without a descriptor nobody can be looked up.
            if time.monotonic() > deadline:
                raise
            found = [leader]
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.005)


def _strike(leader: int, mark: str, number: int, spared: Collection[int] | None) -> list[int]:
    """One round; returns what was there."""
    found = members(leader, mark, number, spared)
    signal_all(found, signal.SIGSTOP)
    again = members(leader, mark, number, spared) if found else found
    signal_all(again, signal.SIGKILL)
    # A process that starts the next and ends, again and again, is gone when the table was read.
    # Its offspring comes to this process, and the list of children is quick to read.
    known = {leader, *again, *(spared or ())}
    for _ in range(_CHASES if number and again else 0):
        fresh = [pid for pid in orphans() if pid not in known and _belongs(pid, mark, number)]
        signal_all(fresh, signal.SIGKILL)
    return found
