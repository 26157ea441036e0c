"""Shells for programs: a persistent bash each, by a client's id.

Unlike the tools' shells they stream output, interrupt a command that runs out of time before they
end it, and let one that may outlive its time go on as a process while they get a new bash.
"""

import asyncio
import functools
import logging
import os
import secrets
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from .commands import FOREVER, Command, Script
from .errors import Busy, IdConflict, InvalidField, NotFound, WrongState
from .finishing import each_to_its_end, to_its_end
from .jobs import RESOURCE_LIMIT, Ending, Failure, Job, Jobs, Reason
from .processes import Reaper
from .shell import Shell, ShellError
from .state import Activity

MAX_SHELLS = 64
log = logging.getLogger(__name__)


class Slot:
    """One shell by its id; the bash in it is replaced when it ends."""

    def __init__(
        self,
        shell_id: str,
        digest: bytes,
        cwd: str,
        env: Mapping[str, str],
        shell: Shell,
    ) -> None:
        self.id = shell_id
        self.digest = digest
        self.first_cwd = cwd
        self.env = env
        self.generation = 0
        self.running: Command | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.lock = asyncio.Lock()
        """Held while bash is started or ended."""
        self.shell = shell
        self.closed = False


class Shells:
    """All shells; `jobs` knows the commands of each."""

    def __init__(
        self, state_dir: Path, reaper: Reaper, activity: Activity, processes: Jobs
    ) -> None:
        self._state_dir = state_dir
        self._reaper = reaper
        self._activity = activity
        self._processes = processes
        self._slots: dict[str, Slot] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.jobs = Jobs()

    def all(self) -> list[Slot]:
        """Every shell, oldest first."""
        return list(self._slots.values())

    def get(self, shell_id: str) -> Slot:
        """The shell of this id; raises NotFound."""
        found = self._slots.get(shell_id)
        if found is None:
            raise NotFound("UNKNOWN_ID", "no such shell", shell_id=shell_id)
        return found

    async def open(self, shell_id: str, cwd: str, env: Mapping[str, str], digest: bytes) -> Slot:
        """Open a shell, or find the one of this id; like the rest, whether the caller stays or not.

        Raises IdConflict when it was opened otherwise, Busy at the bound, InvalidField for a
        directory in which it cannot be opened.
        """
        return await to_its_end(self._open(shell_id, cwd, env, digest))

    async def _open(self, shell_id: str, cwd: str, env: Mapping[str, str], digest: bytes) -> Slot:
        slot = self._slots.get(shell_id)
        if slot is None:
            if len(self._slots) >= MAX_SHELLS:
                why = f"{MAX_SHELLS} shells are open"
                raise Busy("TOO_MANY_SHELLS", why, 1.0, "shells", MAX_SHELLS)
            slot = self._slots[shell_id] = Slot(shell_id, digest, cwd, env, self._new_shell())
        elif slot.digest != digest:
            raise IdConflict("ID_CONFLICT", "this shell was opened otherwise", shell_id=shell_id)
        async with slot.lock:
            if slot.closed:
                raise NotFound("UNKNOWN_ID", "this shell was closed meanwhile", shell_id=shell_id)
            if not slot.generation:
                try:
                    await self._start(slot, cwd)
                except ShellError as error:
                    slot.closed = True
                    self._slots.pop(shell_id, None)
                    await slot.shell.retire()
                    # In a thread: a tool can have a directory on the way locked for a minute.
                    if not await asyncio.to_thread(os.path.isdir, cwd):
                        raise InvalidField("cwd", str(error)) from None
                    raise WrongState("NO_SHELL", str(error), shell_id=shell_id) from None
        return slot

    def run(
        self, shell_id: str, command_id: str, digest: bytes, script: Script
    ) -> tuple[Job, bool]:
        """The command of this id, begun when it is new, and whether it existed before.

        Raises NotFound, IdConflict, Busy, and WrongState (SHELL_BUSY) while the shell runs another.
        """
        key = _key(shell_id, command_id)
        try:
            known = self.jobs.find(key, digest)
        except IdConflict as conflict:
            raise IdConflict(
                "ID_CONFLICT", conflict.message, command_id=command_id, shell_id=shell_id
            ) from None
        if known is not None:
            return known, True
        slot = self.get(shell_id)
        if slot.running is not None:
            raise WrongState(
                "SHELL_BUSY",
                "the shell runs another command",
                shell_id=shell_id,
                command_id=slot.running.id,
            )
        self.jobs.require_room(script.policy)
        command = Command(command_id, digest, script)
        self.jobs.put(command, key)
        slot.running = command
        slot.idle.clear()
        self._background(self._run(slot, command))
        return command, False

    def knows(self, shell_id: str, command_id: str) -> bool:
        """Whether a command of this id runs or is kept."""
        return self.jobs.has(_key(shell_id, command_id))

    def command(self, shell_id: str, command_id: str) -> Job:
        """The command of this id, running or kept; raises NotFound."""
        try:
            return self.jobs.get(_key(shell_id, command_id))
        except NotFound:
            raise NotFound(
                "UNKNOWN_ID", "no such command", command_id=command_id, shell_id=shell_id
            ) from None

    async def reset(self, shell_id: str) -> Slot:
        """End what a shell runs, and start it afresh in its first directory."""
        return await to_its_end(self._reset(shell_id))

    async def _reset(self, shell_id: str) -> Slot:
        slot = self.get(shell_id)
        await self._end_command(slot, Reason.CANCELLED)
        async with slot.lock:
            if slot.closed:
                raise NotFound("UNKNOWN_ID", "this shell was closed meanwhile", shell_id=shell_id)
            try:
                await self._start(slot, slot.first_cwd)
            except ShellError as error:
                raise WrongState("NO_SHELL", str(error), shell_id=shell_id) from None
        return slot

    async def close(self, shell_id: str, reason: Reason = Reason.CANCELLED) -> None:
        """End a shell and every process in it; raises NotFound."""
        await to_its_end(self._close(shell_id, reason))

    async def _close(self, shell_id: str, reason: Reason) -> None:
        slot = self.get(shell_id)
        slot.closed = True
        del self._slots[shell_id]
        await self._end_command(slot, reason)
        async with slot.lock:
            await slot.shell.retire()

    async def close_all(self) -> None:
        """End every shell; from the beginning no command goes on as a process any more."""
        for slot in self._slots.values():
            slot.closed = True
        close = functools.partial(self.close, reason=Reason.SHUTDOWN)
        await each_to_its_end(close, list(self._slots))

    async def _end_command(self, slot: Slot, reason: Reason) -> None:
        while slot.running is not None:
            await slot.running.stop(reason)
            await slot.idle.wait()

    async def _start(self, slot: Slot, *where: str) -> None:
        """Start bash anew in the first directory that will do; raises ShellError."""
        for index, cwd in enumerate(where):
            try:
                await slot.shell.open(cwd, slot.env)
            except ShellError:
                if index == len(where) - 1:
                    raise
            else:
                break
        slot.generation += 1

    async def _run(self, slot: Slot, command: Command) -> None:
        with self._activity:
            async with slot.lock:
                shell = slot.shell
                outcome: Ending | Failure | None = None
                if not shell.alive:
                    outcome = await self._start_again(slot)
            if outcome is None:
                timer = self._time(slot, command)
                try:
                    outcome = await command.run(shell)
                except Exception:
                    # Whoever waits must learn that nothing comes any more.
                    log.exception("a command's care failed")
                    outcome = Failure("OTHER", 0, "the server lost track of it")
                finally:
                    timer.cancel()
            try:
                if slot.shell is not shell:
                    # It went on as a process, which ends with all that is left of its shell.
                    await shell.retire()
                elif (_is_unusable(outcome) or not shell.alive) and not slot.closed:
                    async with slot.lock:
                        # What fails here is tried again, and told, by the next command.
                        await self._start_again(slot)
            finally:
                if slot.running is command:
                    slot.running = None
                    slot.idle.set()
                command.end(outcome)

    async def _start_again(self, slot: Slot) -> Failure | None:
        """Start bash where it was, or in its first directory; returns why it cannot be."""
        try:
            await self._start(slot, slot.shell.cwd or slot.first_cwd, slot.first_cwd)
        except ShellError as error:
            return Failure("OTHER", 0, str(error))
        except OSError as error:  # no descriptor is left to end with what was before
            return Failure(RESOURCE_LIMIT, error.errno or 0, error.strerror or "no shell")
        return None

    def _time(self, slot: Slot, command: Command) -> asyncio.TimerHandle:
        def over() -> None:
            if command.script.detach:
                self._background(self._detach(slot, command))
            else:
                self._background(command.interrupt())

        loop = asyncio.get_running_loop()
        return loop.call_later(command.script.timeout or FOREVER, over)

    async def _detach(self, slot: Slot, command: Command) -> None:
        """Let a command go on as a process, and give its shell a new bash in the same place."""
        async with slot.lock:
            if not command.running or command.stopping is not None or slot.closed:
                return
            try:
                self._processes.require_room(command.policy)
            except Busy:
                self._background(command.interrupt())
                return
            try:
                where = os.readlink(f"/proc/{command.leader}/cwd")  # noqa: PTH115 - as it is
            except OSError:
                where = slot.shell.cwd
            process_id = command.id
            if self._processes.has(process_id):
                process_id = f"{command.id[:100]}-{secrets.token_hex(4)}"
            self._processes.put(command, process_id)
            slot.shell = self._new_shell()
            slot.shell.cwd = where
            slot.running = None
            slot.idle.set()
            command.detach_as(process_id)
            # The next command waits for the lock. What fails here is tried again, and told, by it.
            await self._start_again(slot)

    def _new_shell(self) -> Shell:
        return Shell("s", self._state_dir, self._reaper)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(shell_id: str, command_id: str) -> str:
    return f"{shell_id}\0{command_id}"


def _is_unusable(outcome: Ending | Failure) -> bool:
    """Whether a command could not be run in its shell, nor can another."""
    return isinstance(outcome, Failure) and outcome.kind != RESOURCE_LIMIT
