"""Programs: started without a shell, on pipes or on a terminal, each a job."""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import logging
import os
import resource
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloister_api.turns import turn

from . import terminal
from .errors import WrongState
from .hands import STALLED_SECONDS
from .jobs import RESOURCE_LIMIT, Ending, Failure, Job, Jobs, Reason, oom_kills, reason_of
from .kin import MARK, NOBODY, forget_tree, members, signal_all
from .lacking import EXHAUSTED, passing_over
from .leftovers import KEPT
from .looks import in_thread
from .outputs import Policy
from .processes import Ended, Reaper
from .sources import STDERR, STDOUT, TERMINAL, Source
from .spawn import nothing
from .state import Activity
from .stdin import Stdin
from .survivors import Survivors

STARTING = 16
"""Programs that are being started at once: each needs descriptors that it gives back. Who is held
up by the kernel does not count."""
QUICK_SECONDS = 0.005
"""After which a program's output is read while it runs."""
LAST_WORDS = 0.05
"""Seconds in which output may still come after the program ended."""
TERMINATE_AFTER, KILL_AFTER = 2.0, 5.0
"""Seconds after a timeout's interrupt."""
log = logging.getLogger(__name__)
_known_peak = 0
_KINDS = {
    errno.ENOENT: "NOT_FOUND",
    errno.ENOTDIR: "NOT_FOUND",
    errno.ELOOP: "NOT_FOUND",
    errno.EACCES: "PERMISSION_DENIED",
    errno.EPERM: "PERMISSION_DENIED",
    errno.ENOEXEC: "NOT_EXECUTABLE",
    errno.EISDIR: "NOT_EXECUTABLE",
    errno.E2BIG: "BAD_ARGUMENTS",
    errno.ENAMETOOLONG: "BAD_ARGUMENTS",
    **dict.fromkeys((*EXHAUSTED, errno.ENOSPC), RESOURCE_LIMIT),
}


@dataclass(frozen=True)
class Order:
    """What to run, and how."""

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    policy: Policy
    size: tuple[int, int] | None = None
    """Columns and rows of its terminal."""
    stdin: bool = False
    timeout: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


class Program(Job):
    """One program, from its start to its end."""

    def __init__(self, job_id: str, digest: bytes, order: Order, reaper: Reaper) -> None:
        super().__init__(job_id, digest, order.argv, order.policy, order.labels)
        self.mark = f"p-{secrets.token_hex(6)}"
        self.input: Stdin | None = None
        self.left_processes = False
        """Whether something that it started went on when it ended."""
        self._order = order
        self._reaper = reaper
        self._sources: list[Source] = []
        self._terminal = -1
        self._answer = -1
        """Tells, by its end, that the program runs on its terminal."""
        self._ladder: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[Ended] | None = None
        """Done when it has ended; None before it was started."""

    @property
    def takes_input(self) -> bool:
        """Whether its standard input can be written to; a terminal's always can."""
        return self._order.stdin or self._order.size is not None

    def pause(self) -> None:
        for source in self._sources:
            source.pause()

    def resume(self) -> None:
        for source in self._sources:
            source.go_on()

    async def run(self, activity: Activity, starting: asyncio.Semaphore) -> None:
        """Start it and see it end; never raises for what the program does."""
        with activity:
            oom_before = oom_kills()
            try:
                async with turn(starting, STALLED_SECONDS):
                    ended = await self._start()
                # What ends at once is read then, and never watched.
                quick = 0.0 if self.takes_input else QUICK_SECONDS
                reading = asyncio.get_running_loop().call_later(quick, self.resume)
                if self._answer >= 0:
                    await self._launched(ended)
            except OSError as error:
                self.close()
                self.end(self._failure(error))
                self._forget_arguments()
                return
            self._forget_arguments()
            self.begun.set_result(None)
            if self.stopping is not None:
                await self.kill()
            if self._order.timeout:
                self._ladder = asyncio.create_task(self._run_out(self._order.timeout))
            how = await ended
            reading.cancel()
            await self._finish(how, oom_before)
        if self.input is not None:
            await self.input.finish()
        for source in self._sources:
            # Survivors must never block on what nobody reads.
            source.drain()
            KEPT.keep(source)

    async def kill(self) -> None:
        await self._reaper.end(self.leader or NOBODY, self.mark, self._ended)

    def _forget_arguments(self) -> None:
        """What it was started with can be large, and is not needed while its output is kept."""
        self._order = dataclasses.replace(self._order, argv=self.argv, env={}, labels={})

    async def resize(self, columns: int, rows: int) -> None:
        """Change the size of its terminal.

        Raises WrongState when it has none, or ended, OSError without a descriptor for it.
        """
        self.require_running()
        if self._order.size is None:
            raise WrongState("NO_TERMINAL", "it was started without a terminal", id=self.id)
        with passing_over():  # as a rule all have closed it
            await terminal.resize_held(self._terminal, columns, rows, self._reaper.hands)

    async def _start(self) -> "asyncio.Future[Ended]":
        if "\0" in self._order.cwd:
            raise OSError(errno.EINVAL, "the directory has a NUL character", self._order.cwd)
        env = {**self._order.env, MARK: self.mark}
        # What Popen refuses on its own, before the kernel sees it.
        if any("\0" in each for each in [*self._order.argv, *env, *env.values()]):
            raise OSError(errno.E2BIG, "a NUL character in an argument or variable")
        if self._order.size is not None:
            return await self._start_on_terminal(env, self._order.size)
        return await self._start_on_pipes(env)

    async def _start_on_pipes(self, env: Mapping[str, str]) -> "asyncio.Future[Ended]":
        with contextlib.ExitStack() as theirs:

            def pipe(end: int) -> tuple[int, int]:
                both = os.pipe()
                theirs.callback(os.close, both[end])
                return both

            stdin = nothing()
            if self._order.stdin:
                stdin, ours = pipe(0)
                os.set_blocking(ours, False)
                self.input = Stdin(ours, self._reaper.hands, terminal=False, ended=self.done)
            out, stdout = pipe(1)
            self._sources.append(Source(out, STDOUT, self.store, self._reaper.hands))
            stderr = stdout
            if self._order.policy.separate_stderr:
                err, stderr = pipe(1)
                self._sources.append(Source(err, STDERR, self.store, self._reaper.hands))
            self.leader, self._ended = await self._reaper.launch(
                self._order.argv,
                cwd=self._order.cwd,
                env=env,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                theirs=theirs.pop_all(),
            )
        return self._ended

    async def _start_on_terminal(
        self, env: Mapping[str, str], size: tuple[int, int]
    ) -> "asyncio.Future[Ended]":
        with contextlib.ExitStack() as theirs:
            hands = self._reaper.hands
            # Whoever opens it first has its size before we have, and can keep it (see resize_held).
            opening = functools.partial(terminal.open_terminal, *size)
            self._terminal, tty = await hands.run(opening)
            theirs.callback(os.close, tty)
            self._sources.append(Source(self._terminal, TERMINAL, self.store, hands, terminal=True))
            self.input = Stdin(self._terminal, hands, terminal=True, ended=self.done)
            self._answer, report = os.pipe()
            os.set_blocking(self._answer, False)
            theirs.callback(os.close, report)
            argv, spec = terminal.launcher(self._order.argv, env, report)
            theirs.callback(os.close, spec)
            self.leader, self._ended = await self._reaper.launch(
                argv,
                cwd=self._order.cwd,
                env={MARK: self.mark},
                stdin=tty,
                stdout=tty,
                stderr=tty,
                pass_fds=[spec, report],
                theirs=theirs.pop_all(),
            )
        return self._ended

    async def _launched(self, ended: "asyncio.Future[Ended]") -> None:
        """Wait until the launcher has become the program; raises OSError when it cannot.

        Not while others wait to be started: it is a process like theirs, which they can stop.
        """
        answer, self._answer = self._answer, -1
        number = await terminal.launched(answer, ended, self._reaper.hands)
        if number == b"":
            return
        if not ended.done():
            await self.kill()
            number = number or str(errno.ETIMEDOUT).encode()
        await ended
        if number:
            self.leader = 0
            why = int(number) if number.isdigit() and len(number) < 4 else errno.EIO
            raise OSError(why, os.strerror(why), self._order.argv[0])

    async def _run_out(self, timeout: float) -> None:
        await asyncio.sleep(timeout)
        self.stopping = self.stopping or Reason.TIMED_OUT
        self._strike(signal.SIGINT)
        await asyncio.sleep(TERMINATE_AFTER)
        self._strike(signal.SIGTERM)
        await asyncio.sleep(KILL_AFTER - TERMINATE_AFTER)
        await self.kill()

    def _strike(self, number: int) -> None:
        """Signal its group, and on a terminal the group in the foreground."""
        groups = {self.leader, terminal.foreground(self._terminal) if self._terminal >= 0 else 0}
        signal_all([-group for group in groups if group], number)

    async def _finish(self, how: Ended, oom_before: int) -> None:
        leader, self.leader = self.leader, 0
        if self._ladder is not None:
            self._ladder.cancel()
        wall = time.monotonic() - self.began
        if self.stopping is not None or signal.SIGKILL in self.sent:
            await self._reaper.unended.end(leader, self.mark)
        # After a pause for readers everything that is in the pipes is taken.
        for source in self._sources:
            await source.flush()
        held = [source.closed for source in self._sources if source.held]
        if held:
            await asyncio.wait(held, timeout=LAST_WORDS)
        survivors = await self._survivors(leader)
        self.end(
            Ending(
                how.code,
                reason_of(self, how.code, oom_before),
                wall,
                cpu=how.cpu,
                max_rss=how.max_rss if beyond_own_peak(how.max_rss) else 0,
                survivors=survivors,
            )
        )

    async def _survivors(self, leader: int) -> int:
        """How many of its processes go on; 0 where there is no descriptor left to look for them."""
        found: list[int] = []
        if self._reaper.has_orphans():
            try:
                found = await in_thread(functools.partial(members, leader, self.mark))
            except OSError:
                self.left_processes = True
                return 0
        self.left_processes = bool(found)
        if not found:
            forget_tree(self.mark)
        return len(found)

    def _failure(self, error: OSError) -> Failure:
        number = error.errno or 0
        text = error.strerror or "it cannot be started"
        if error.filename == self._order.cwd and number != errno.E2BIG:
            return Failure("BAD_CWD", number, f"{self._order.cwd}: {text}")
        kind = _KINDS.get(number, "OTHER")
        name = self._order.argv[0][:256]
        return Failure(kind, number, f"{name}: {text}" if kind != "BAD_ARGUMENTS" else text)

    def close(self) -> None:
        """Let its streams go, of one that did not start or that was lost track of."""
        if self._answer >= 0:
            self._reaper.hands.let_go(self._answer)
            self._answer = -1
        if self.input is not None:
            self.input.close()
        for source in self._sources:
            source.close()


class Programs:
    """Starts programs; `jobs` knows each of them, and commands that outlived their shell."""

    def __init__(self, reaper: Reaper, activity: Activity) -> None:
        self._reaper = reaper
        self._activity = activity
        self._running: set[asyncio.Task[None]] = set()
        self._survivors = Survivors(reaper.unended)
        self._starting = asyncio.Semaphore(STARTING)
        self.jobs = Jobs()

    def start(self, job_id: str, digest: bytes, order: Order) -> tuple[Job, bool]:
        """The job of this id, started when it is new, and whether it existed before.

        Raises IdConflict when the id stands for another payload, and Busy at the bounds.
        """
        known = self.jobs.find(job_id, digest)
        if known is not None:
            return known, True
        self.jobs.require_room(order.policy)
        program = Program(job_id, digest, order, self._reaper)
        self.jobs.put(program)
        task = asyncio.create_task(self._run(program))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return program, False

    async def close(self) -> None:
        """End every program, and what ended programs left behind."""
        # Both at once: what was left behind may trace what runs, and keep its end to itself.
        await asyncio.gather(self.jobs.stop_all(Reason.SHUTDOWN), self._survivors.kill())
        # And what was left since.
        await self._survivors.kill()

    async def _run(self, program: Program) -> None:
        try:
            await program.run(self._activity, self._starting)
        except Exception:
            # Whoever waits must learn that nothing comes any more.
            log.exception("a program's care failed")
            await program.kill()
            if program.running:
                program.end(Failure("OTHER", 0, "the server lost track of it"))
            if program.input is not None:
                await program.input.finish()
            program.close()
        if program.left_processes:
            self._survivors.add(program.mark)


def beyond_own_peak(size: int) -> bool:
    """Whether this process never had so much memory (bytes). What it had, the kernel counts as its
    children's too.
    """
    global _known_peak
    if size > _known_peak:  # the kernel is slow to tell, and it only grows
        _known_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return size > _known_peak
