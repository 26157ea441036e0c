"""Commands of shells for programs: jobs on the framing of the tools' shells (see shell)."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .jobs import Ending, Failure, Job, Reason, oom_kills, reason_of
from .outputs import Policy
from .processes import members, signal_all
from .shell import Cancel, Finished, Shell, ShellError, Tail
from .sources import STDOUT

INTERRUPT_AGAIN = 1.0
TERMINATE_AFTER = 2.0
KILL_AFTER = 5.0
"""Seconds after the first interrupt."""
FOREVER = 1e9
_TICKS = os.sysconf("SC_CLK_TCK")
_ON_INTERRUPT = "trap 'builtin return 130 2>/dev/null' INT\n"
"""bash itself would end; so it ends the script that it runs, or one function of it."""


class InterruptibleShell(Shell):
    """A shell that survives an interrupt."""

    async def open(self, cwd: str, env: Mapping[str, str]) -> None:
        await super().open(cwd, env)
        self._send(_ON_INTERRUPT)


@dataclass(frozen=True)
class Script:
    """What to run in a shell, and how."""

    text: str
    timeout: float
    detach: bool
    """Whether it goes on when its time is up."""
    policy: Policy


class _Printed(Tail):
    """Hands what a command prints to its store."""

    def __init__(self, command: "Command") -> None:
        super().__init__(0)
        self._command = command

    def add(self, data: bytes) -> None:
        self.total += len(data)
        self._command.store.add(STDOUT, data)


class Command(Job):
    """One command of a shell."""

    def __init__(self, job_id: str, digest: bytes, script: Script) -> None:
        super().__init__(job_id, digest, ("bash", "-c", script.text), script.policy)
        self.script = script
        self._shell: Shell | None = None
        self._cancel: Cancel = asyncio.get_running_loop().create_future()

    def pause(self) -> None:
        if self._shell is not None and self._shell.output is not None:
            self._shell.output.pause()

    def resume(self) -> None:
        if self._shell is not None and self._shell.output is not None:
            self._shell.output.watch()

    async def kill(self) -> None:
        if not self._cancel.done():
            self._cancel.set_result(None)

    async def run(self, shell: Shell) -> Finished | None:
        """Run it; returns how it ended, or None when it could not begin."""
        self._shell = shell
        self.leader, self.mark = shell.leader
        self.begun.set_result(None)
        oom_before = oom_kills()
        try:
            finished = await shell.run(self.script.text, FOREVER, self._cancel, _Printed(self))
        except ShellError as error:
            self.end(Failure("OTHER", 0, str(error)))
            return None
        leader, self.leader = self.leader, 0
        self.end(await self._ending(finished, leader, oom_before))
        return finished

    def detach_as(self, process_id: str) -> None:
        """It goes on as a process; its readers are told."""
        self.detached_as = process_id
        self.store.wake()

    async def interrupt(self) -> None:
        """Stop it: interrupt, then terminate, then kill with the shell.

        Everything that it started ends too, in the background as well; what earlier commands
        started goes on if the shell survives.
        """
        self.stopping = self.stopping or Reason.TIMED_OUT
        for number, pause in (
            (signal.SIGINT, INTERRUPT_AGAIN),
            (signal.SIGINT, TERMINATE_AFTER - INTERRUPT_AGAIN),
            (signal.SIGTERM, KILL_AFTER - TERMINATE_AFTER),
        ):
            if not self.leader:
                break
            signal_all(await self._own(self.leader), number)
            # The shell itself only ever hears an interrupt: it then leaves the script.
            signal_all([self.leader] if self.leader else [], signal.SIGINT)
            await asyncio.wait([self.done], timeout=pause)
        await self.kill()

    async def _ending(self, finished: Finished, leader: int, oom_before: int) -> Ending:
        code = finished.code
        if finished.shell_lost and code > 128:
            code = 128 - code
        reason = reason_of(self, code, oom_before)
        if reason is Reason.EXITED and finished.shell_lost:
            reason = Reason.SHELL_LOST
        if self.stopping is Reason.TIMED_OUT and not finished.shell_lost:
            signal_all(await self._own(leader), signal.SIGKILL)
        return Ending(code, reason, time.monotonic() - self.began, cwd=finished.cwd)

    async def _own(self, leader: int) -> set[int]:
        """What this command started, as far as it still runs."""
        found = await asyncio.to_thread(members, leader, self.mark)
        # The kernel tells the time of a start in ticks, rounded down.
        age = time.monotonic() - self.began + 1 / _TICKS
        return {pid for pid in found if pid != leader and age_of(pid) <= age}


def age_of(pid: int) -> float:
    """Seconds since a process was started; infinite when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return float("inf")
    ticks = int(stat[stat.rindex(")") + 2 :].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _TICKS
