"""Programs and shells as plain, frozen values: what they print, how they end, what there is."""

from dataclasses import dataclass, field
from datetime import datetime

from cloister_api.exec.v1 import exec_pb2

from ._errors import StartFailedError
from ._numbers import whole
from ._wire import moment, span, word


@dataclass(frozen=True)
class Output:
    """Bytes that a program printed."""

    stream: str
    """`stdout`, `stderr`, or `terminal`."""
    offset: int
    """Of the first byte, counted over all streams of the program's life."""
    data: bytes = field(repr=False)

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + len(self.data)

    @classmethod
    def from_proto(cls, message: exec_pb2.Output) -> "Output":
        """The typed view of the server's message."""
        stream = word(exec_pb2.Output.Stream, message.stream, "STREAM_")
        return cls(stream, message.offset, message.data)


@dataclass(frozen=True)
class Gap:
    """Output that the server does not keep any more, from `start` to before `end`."""

    start: int
    end: int


Event = Output | Gap
"""What comes from a program."""


@dataclass(frozen=True)
class Exit:
    """How a program or a shell's command ended; or that it was detached from its shell."""

    code: int | None
    """What it ended with by itself; None when a signal ended it, or when it goes on."""
    signal: int | None = None
    """The number of the signal that ended it."""
    reason: str = "exited"
    """`exited`, `timed_out`, `cancelled`, `shell_lost`, `shutdown`, `oom_killed`, `signalled`, or
    `unknown` for what only a newer server says; or `detached`: its time was up and it goes on as
    the program `process_id`."""
    seconds: float = 0.0
    """How long it ran."""
    cpu_seconds: float = 0.0
    """Processor time of it and of the children that it waited for."""
    max_rss_bytes: int = 0
    """The most memory it had; 0 when that was too little to tell."""
    survivors: int = 0
    """Processes that it started and that go on."""
    lost_bytes: int = 0
    """Bytes it printed that are not kept any more, by any offset."""
    cwd: str = ""
    """The shell's working directory afterwards; only of a shell's command."""
    process_id: str = ""
    """With `detached`: the program to attach to."""
    next_offset: int = 0
    """With `detached`: where its output goes on."""

    @property
    def status(self) -> int | None:
        """The exit status as a shell says it, 128 plus the number of a signal; None: it goes on."""
        return self.code if self.signal is None else 128 + self.signal

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with 0."""
        return self.code == 0 and self.reason == "exited"

    @classmethod
    def from_proto(cls, message: exec_pb2.ExitInfo) -> "Exit":
        """The typed view of the server's message."""
        killed = message.HasField("signal")
        return cls(
            code=None if killed else message.code,
            signal=message.signal if killed else None,
            reason=word(exec_pb2.ExitInfo.Reason, message.reason, "REASON_"),
            seconds=span(message.wall),
            cpu_seconds=span(message.cpu),
            max_rss_bytes=message.max_rss_bytes,
            survivors=message.surviving_processes,
            lost_bytes=message.truncation.omitted_bytes,
            cwd=message.cwd,
        )

    @classmethod
    def detached(cls, message: exec_pb2.Detached) -> "Exit":
        """That a shell's command goes on as a program."""
        return cls(
            code=None,
            reason="detached",
            process_id=message.process_id,
            next_offset=message.next_offset,
        )


_KIB = 1024


@dataclass(frozen=True)
class OutputPolicy:
    """How much of a program's output the server keeps, and who waits for whom; in bytes."""

    head_bytes: int | None = None
    """From the beginning; None is 32 KiB."""
    tail_bytes: int | None = None
    """From the end; None is 64 KiB."""
    spool_bytes: int | None = None
    """Between them, in a file; None is 64 MiB."""
    block_when_full: bool = False
    """Let the program wait for its slowest reader rather than drop what is beyond the bounds."""

    @property
    def kept_bytes(self) -> int:
        """What the server keeps at most."""
        head = 32 * _KIB if self.head_bytes is None else self.head_bytes
        tail = 64 * _KIB if self.tail_bytes is None else self.tail_bytes
        spool = 64 * _KIB * _KIB if self.spool_bytes is None else self.spool_bytes
        return head + tail + spool

    def to_proto(self, *, separate_stderr: bool = False) -> exec_pb2.OutputPolicy:
        """The message for the server; raises ValueError for a bound of nothing or less."""
        bounds = {"head": self.head_bytes, "tail": self.tail_bytes, "spool": self.spool_bytes}
        for name, bound in bounds.items():
            # 0 would mean the default to the server.
            if bound is not None:
                whole(f"{name}_bytes", bound, 1)
        return exec_pb2.OutputPolicy(
            head_bytes=self.head_bytes or 0,
            tail_bytes=self.tail_bytes or 0,
            spool_bytes=self.spool_bytes or 0,
            separate_stderr=separate_stderr,
            block_when_full=self.block_when_full,
        )


@dataclass(frozen=True)
class ProcessInfo:
    """A program that runs, or whose output is kept."""

    id: str
    argv: tuple[str, ...]
    started_at: datetime
    running: bool
    exit: Exit | None
    """How it ended; None while it runs, and when it could not be started."""
    output_bytes: int
    """What it printed so far."""
    labels: dict[str, str]

    @classmethod
    def from_proto(cls, message: exec_pb2.Process) -> "ProcessInfo":
        """The typed view of the server's message."""
        return cls(
            id=message.process_id,
            argv=tuple(message.argv),
            started_at=moment(message.started_at),
            running=message.running,
            exit=Exit.from_proto(message.exit) if message.HasField("exit") else None,
            output_bytes=message.output_bytes,
            labels=dict(message.labels),
        )


@dataclass(frozen=True)
class ShellInfo:
    """A shell that is open."""

    id: str
    busy: bool
    """Whether it runs a command."""
    cwd: str
    generation: int
    """Grows each time that its bash is started again: the state before is gone."""
    running_command_id: str
    """Empty when it is not busy."""

    @classmethod
    def from_proto(cls, message: exec_pb2.Shell) -> "ShellInfo":
        """The typed view of the server's message."""
        return cls(
            id=message.shell_id,
            busy=message.state == exec_pb2.Shell.STATE_BUSY,
            cwd=message.cwd,
            generation=message.generation,
            running_command_id=message.running_command_id,
        )


def start_failed(message: exec_pb2.ExecFailure) -> StartFailedError:
    """The error for a program that could not be started."""
    kind = word(exec_pb2.ExecFailure.Kind, message.kind, "KIND_")
    return StartFailedError(message.message or kind, kind, message.errno)
