"""Processes of tools: starting them, ending all of a tree, and reaping orphans.

The server is PID 1 of its container, so orphans become its children. One owner reaps all of them:
the SIGCHLD handler. It passes the statuses of processes that were started here to who waits.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .signals import unblocked

MARK = "CLOISTER_CONTEXT"
"""Variable by which processes that left their parents are still found."""


class Reaper:
    """The only caller of waitpid in this process."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._unclaimed: dict[int, int] = {}
        self._starting = 0

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
        self._starting += 1
        try:
            pid = await asyncio.to_thread(_spawn, argv, cwd, env, stdin, pass_fds)
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            if pid in self._unclaimed:
                future.set_result(self._unclaimed.pop(pid))
            else:
                self._waiting[pid] = future
            return pid, future
        finally:
            self._starting -= 1
            if not self._starting:
                self._unclaimed.clear()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            future = self._waiting.pop(pid, None)
            if future is None:
                # An orphan; or a program that ended before `start` learned its pid, which is why
                # codes are kept while one starts, and no longer, because pids come again.
                if self._starting:
                    self._unclaimed[pid] = code
            elif not future.done():
                future.set_result(code)


def _spawn(
    argv: Sequence[str], cwd: str, env: Mapping[str, str], stdin: int, pass_fds: Sequence[int]
) -> int:
    """Start a program; there is no preexec function: with one, Python would fork this process
    with its gRPC threads instead of using vfork.
    """
    with unblocked():
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    process.returncode = 0  # the reaper waits for it, the Popen object must not
    with contextlib.suppress(OSError):
        # When memory runs out, a tool goes before the server.
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("500")
    return process.pid


def _table() -> dict[int, tuple[int, int]]:
    """pid -> (parent, session) of every process in sight."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry.name}/stat").read_text()
        except OSError:
            continue
        fields = stat[stat.rindex(")") + 2 :].split()
        found[int(entry.name)] = (int(fields[1]), int(fields[3]))
    return found


def _is_marked(pid: int, mark: str) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environ.split(b"\0")


def members(leader: int, mark: str) -> list[int]:
    """Every process of a tree: descendants, members of its sessions, and marked orphans."""
    table = _table()
    me = os.getpid()
    # The pid of a leader that is gone may be another process by now.
    found = {leader} if table.get(leader) == (me, leader) else set()
    sessions = {leader}
    found |= {
        pid
        for pid, (parent, _) in table.items()
        if parent == me and pid != me and _is_marked(pid, mark)
    }
    while True:
        more = {
            pid
            for pid, (parent, session) in table.items()
            if pid not in found and pid != me and (parent in found or session in sessions)
        }
        if not more:
            return sorted(found)
        found |= more
        sessions |= {table[pid][1] for pid in more if table[pid][1] in found}


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


async def kill_tree(leader: int, mark: str) -> None:
    """End every process of a tree.

    Stopped first, so that none can start another while the rest is looked up; looked up again
    until nothing is left, because a process may have been in the middle of starting one.
    """
    for _ in range(20):
        found = await asyncio.to_thread(members, leader, mark)
        if not found:
            return
        signal_all(found, signal.SIGSTOP)
        signal_all(await asyncio.to_thread(members, leader, mark), signal.SIGKILL)
        await asyncio.sleep(0.005)
