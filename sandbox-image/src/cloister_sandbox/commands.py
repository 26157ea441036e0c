"""Commands of shells for programs: jobs on the framing of the tools' shells (see shell)."""

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .capture import Tail
from .jobs import Ending, Failure, Job, Reason, oom_kills, reason_of
from .outputs import Policy
from .processes import members, signal_all
from .shell import Cancel, Finished, Shell, ShellError
from .sources import STDOUT

INTERRUPT_AGAIN = 1.0
TERMINATE_AFTER = 2.0
KILL_AFTER = 5.0
"""Seconds after the first interrupt."""
FOREVER = 1e9
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
        self._earlier: set[int] = set()
        """What earlier commands left running in the background."""
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

    async def run(self, shell: Shell, has_orphans: Callable[[], bool]) -> Ending | Failure:
        """Run it; returns how it ended, which the caller passes to `end`."""
        self._shell = shell
        leader, self.mark = shell.leader
        if self.script.timeout and (has_children(leader) or has_orphans()):
            self._earlier = set(await asyncio.to_thread(members, leader, self.mark))
        self.leader = leader
        self.begun.set_result(None)
        oom_before = oom_kills()
        try:
            finished = await shell.run(self.script.text, FOREVER, self._cancel, _Printed(self))
        except ShellError as error:
            return Failure("OTHER", 0, str(error))
        finally:
            self.leader = 0
        return await self._ending(finished, leader, oom_before)

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
            started = await self._own(self.leader)
            # bash first, which only ever hears an interrupt: it leaves the script as soon as what
            # it waits for has ended, and must know before that ends.
            signal_all([self.leader] if self.leader else [], signal.SIGINT)
            signal_all(started, number)
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
        return set(found) - self._earlier - {leader}


def has_children(pid: int) -> bool:
    """Whether a process has children; True where the kernel does not tell."""
    try:
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_bytes())
    except OSError:
        return True
