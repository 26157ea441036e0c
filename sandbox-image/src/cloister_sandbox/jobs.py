"""What runs in the sandbox by a client's id: programs, and commands of shells.

Each runs once, whoever asks and however often; what it printed and how it ended are kept until they
are released, at most for a while and within bounds.
"""

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from .errors import Busy, IdConflict, NotFound, WrongState
from .kin import members, signal_all
from .looks import in_thread
from .outputs import LIVE, OutputStore, Policy
from .rereading import again
from .wakes import wake

MAX_JOBS = 256
KEEP_BYTES = 512 * 1024 * 1024
"""Of ended jobs together, in memory and in files."""
KEEP_SECONDS = 600.0
STOP_SECONDS = 10.0
"""For all jobs to end; what can be killed ends sooner."""
MEMORY = 288 * 1024 * 1024
"""What all jobs together may ask to be kept in memory."""
SHOWN_BYTES = 16_384
"""Of a command line, for lists: those of all jobs fit into one answer."""


OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
"""Where the kernel counts, with cgroups of version 2 and 1."""


class Reason(Enum):
    """Why a job ended."""

    EXITED = "exited"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    SHELL_LOST = "shell lost"
    SHUTDOWN = "shutdown"
    OOM_KILLED = "oom killed"
    SIGNALLED = "signalled"


class Scope(Enum):
    """Whom a signal reaches."""

    GROUP = "group"
    LEADER = "leader"
    TREE = "tree"


@dataclass(frozen=True)
class Ending:
    """How a job ended; times in seconds."""

    code: int
    """Exit code; a negative one is the signal that ended it."""
    reason: Reason
    wall: float
    cwd: str = ""
    cpu: float = 0.0
    max_rss: int = 0
    survivors: int = 0


RESOURCE_LIMIT = "RESOURCE_LIMIT"
"""The kind of a failure for want of room, after which a shell is as it was."""


@dataclass(frozen=True)
class Failure:
    """Why a job could not begin."""

    kind: str
    """Name of an ExecFailure.Kind without its prefix."""
    errno: int
    message: str


@dataclass(eq=False)
class Job:
    """One job, running or ended."""

    id: str
    digest: bytes
    argv: Sequence[str]
    policy: Policy
    labels: Mapping[str, str] = field(default_factory=dict)
    started_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    ending: Ending | None = None
    failure: Failure | None = None
    detached_as: str = ""
    """The id under which the process registry has it now, when it is a shell's command."""
    leader: int = 0
    """Its pid, while it runs."""
    mark: str = ""

    def __post_init__(self) -> None:
        self.argv = _shown(self.argv)
        self.store = OutputStore(self.policy, self.pause, self.resume)
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        """Done when it has a leader, or ended without one."""
        self.done: asyncio.Future[None] = loop.create_future()
        self.sent: set[int] = set()
        """Signals that were asked for."""
        self.stopping: Reason | None = None
        """Why the server ends it."""
        self._last_resort: asyncio.TimerHandle | None = None
        self._killing: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self.done.done()

    @property
    def takes_input(self) -> bool:
        """Whether its standard input can be written to."""
        return False

    def pause(self) -> None:
        """Stop reading what it prints."""

    def resume(self) -> None:
        """Read on."""

    def end(self, outcome: Ending | Failure) -> None:
        """It is over; the store was filled before."""
        if isinstance(outcome, Ending):
            self.ending = outcome
        else:
            self.failure = outcome
        self.leader = 0
        if self._last_resort is not None:
            self._last_resort.cancel()
        wake(self.begun)
        self.done.set_result(None)
        self.store.finish()

    def require_running(self) -> None:
        """Raise WrongState when it ended."""
        if not self.leader:
            raise WrongState("NOT_RUNNING", "it does not run", id=self.id)

    async def signal(self, number: int, scope: Scope) -> None:
        """Send a signal; raises WrongState when it ended."""
        self.require_running()
        self.sent.add(number)
        if scope is Scope.TREE:
            found = await in_thread(functools.partial(members, self.leader, self.mark))
            signal_all(found, number)
        elif self.leader:
            signal_all([self.leader if scope is Scope.LEADER else -self.leader], number)

    def kill_later(self, seconds: float) -> None:
        """Kill its whole tree if it still runs then; the last word counts."""

        def kill() -> None:
            if self.leader:
                self.sent.add(signal.SIGKILL)
                self._killing = asyncio.create_task(self.kill())

        if self._last_resort is not None:
            self._last_resort.cancel()
        self._last_resort = asyncio.get_running_loop().call_later(seconds, kill)

    async def stop(self, reason: Reason) -> None:
        """End it with all that it started, and wait until it has ended."""
        if self.running:
            self.stopping = self.stopping or reason
            await self.kill()
            await asyncio.wait([self.done])

    async def kill(self) -> None:
        """Kill its tree; `done` follows."""


def oom_kills() -> int:
    """How many processes of this container the kernel ended for want of memory."""
    name = b"oom_kill "
    for path in OOM_COUNTERS:
        with contextlib.suppress(OSError):
            for line in again(path).splitlines():
                if line.startswith(name):
                    return int(line[len(name) :])
    return 0


def reason_of(job: Job, code: int, oom_before: int) -> Reason:
    """Why a job whose leader ended with this code did."""
    if job.stopping is not None:
        return job.stopping
    if -code in job.sent:
        return Reason.SIGNALLED
    if code == -signal.SIGKILL and oom_kills() > oom_before:
        return Reason.OOM_KILLED
    return Reason.EXITED


class Jobs:
    """Registry of jobs by id, bounded in number, bytes and time."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._kept: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        """Jobs that ended, in that order: the bytes each had then, and when it is forgotten."""
        self._kept_bytes = 0
        self._reserved = 0

    def all(self) -> list[Job]:
        """Every job that runs or is kept, oldest first."""
        return list(self._jobs.values())

    def find(self, job_id: str, digest: bytes) -> Job | None:
        """The job of this id; raises IdConflict when it stands for another payload."""
        known = self._jobs.get(job_id)
        if known is not None and known.digest != digest:
            raise IdConflict("ID_CONFLICT", "this id is in use for something else", id=job_id)
        return known

    def get(self, job_id: str) -> Job:
        """The job of this id; raises NotFound when it is unknown or was forgotten."""
        known = self._jobs.get(job_id)
        if known is None:
            raise NotFound("UNKNOWN_ID", "nothing with this id runs or is kept", id=job_id)
        return known

    def has(self, job_id: str) -> bool:
        """Whether the id is in use."""
        return job_id in self._jobs

    def require_room(self, policy: Policy) -> None:
        """Raise Busy when one more job does not fit, after forgetting the oldest that ended."""
        while len(self._jobs) >= MAX_JOBS or self._reserved + _memory(policy) > MEMORY:
            if not self._forget_oldest():
                why = "too many programs or commands run"
                raise Busy("TOO_MANY_JOBS", why, 1.0, "jobs", MAX_JOBS)

    def put(self, job: Job, job_id: str = "") -> None:
        """Know a job from now on, and for a while after it ended; by its own id, or another."""
        self._jobs[job_id or job.id] = job
        self._reserved += _memory(job.policy)
        job.done.add_done_callback(lambda _: self._ended(job_id or job.id, job))

    def release(self, job_id: str) -> None:
        """Forget an ended job; raises NotFound, and WrongState while it runs."""
        job = self.get(job_id)
        if job.running:
            raise WrongState("RUNNING", "it still runs", id=job_id)
        self._forget(job_id, job)

    async def settle(self, grace: float) -> None:
        """Wait until no job runs, at most `grace` seconds."""
        running = [job.done for job in self._jobs.values() if job.running]
        if running:
            await asyncio.wait(running, timeout=grace)

    async def stop_all(self, reason: Reason) -> None:
        """End every job and wait for it; not for ever for one that is still being started."""
        running = [job.stop(reason) for job in self._jobs.values() if job.running]
        if running:
            await asyncio.wait(map(asyncio.create_task, running), timeout=STOP_SECONDS)

    def _ended(self, job_id: str, job: Job) -> None:
        if self._jobs.get(job_id) is not job:
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(KEEP_SECONDS, self._forget, job_id, job)
        self._kept[job_id] = (job.store.kept_bytes, timer)
        self._kept_bytes += job.store.kept_bytes
        while self._kept_bytes > KEEP_BYTES and self._forget_oldest():
            pass

    def _forget_oldest(self) -> bool:
        job_id = next(iter(self._kept), None)
        if job_id is not None:
            self._forget(job_id, self._jobs[job_id])
        return job_id is not None

    def _forget(self, job_id: str, job: Job) -> None:
        if self._jobs.get(job_id) is job:
            del self._jobs[job_id]
            self._reserved -= _memory(job.policy)
            if job_id in self._kept:
                size, timer = self._kept.pop(job_id)
                self._kept_bytes -= size
                timer.cancel()
            # A command that went on as a process belongs to the registry of processes.
            if job.detached_as in ("", job_id):
                job.store.close()


def _shown(argv: Sequence[str]) -> tuple[str, ...]:
    """The beginning of a command line: a long one would be kept for as long as its output."""
    shown: list[str] = []
    room = SHOWN_BYTES
    for each in argv:
        data = each.encode("utf-8", errors="replace")
        if len(data) + 8 > room:
            return (*shown, data[: max(0, room - 64)].decode("utf-8", errors="ignore") + "...")
        shown.append(each)
        room -= len(data) + 8
    return tuple(shown)


def _memory(policy: Policy) -> int:
    return policy.head + max(policy.tail, LIVE)
