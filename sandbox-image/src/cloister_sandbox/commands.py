"""Commands of shells for programs: jobs on the framing of the tools' shells (see shell)."""

import asyncio
import dataclasses
import time
from dataclasses import dataclass

from .capture import Tail
from .jobs import RESOURCE_LIMIT, Ending, Failure, Job, Reason, oom_kills, reason_of
from .outputs import Policy
from .shell import Cancel, Finished, NotNow, Shell, ShellError
from .sources import STDOUT
from .wakes import wake

FOREVER = 1e9


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
            self._shell.output.go_on()

    async def kill(self) -> None:
        wake(self._cancel)

    async def run(self, shell: Shell) -> Ending | Failure:
        """Run it; returns how it ended, which the caller passes to `end`."""
        self._shell = shell
        self.leader, self.mark = shell.leader
        self.begun.set_result(None)
        oom_before = oom_kills()
        try:
            finished = await shell.run(
                self.script.text, FOREVER, self._cancel, _Printed(self), cancel_kills=True
            )
        except NotNow as error:
            return Failure(RESOURCE_LIMIT, 0, str(error))
        except ShellError as error:
            return Failure("OTHER", 0, str(error))
        finally:
            self.leader = 0
            # It can be large, and is not needed while its output is kept.
            self.script = dataclasses.replace(self.script, text="")
        return self._ending(finished, oom_before)

    def detach_as(self, process_id: str) -> None:
        """It goes on as a process; its readers are told."""
        self.detached_as = process_id
        self.store.wake()

    async def interrupt(self) -> None:
        """Its time is up: stop it, with the shell only where it must be."""
        self.stopping = self.stopping or Reason.TIMED_OUT
        if self._shell is not None:
            await self._shell.interrupt()

    def _ending(self, finished: Finished, oom_before: int) -> Ending:
        code = finished.code
        if finished.shell_lost and code > 128:
            code = 128 - code
        reason = reason_of(self, code, oom_before)
        if reason is Reason.EXITED and finished.shell_lost:
            reason = Reason.SHELL_LOST
        wall = time.monotonic() - self.began
        return Ending(code, reason, wall, cwd=finished.cwd, survivors=finished.surviving)
