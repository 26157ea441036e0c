"""Programs and shells on an exec server, as a worker uses them."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc


@dataclass
class Seen:
    """What a stream of output events said."""

    events: list[exec_pb2.OutputEvent] = field(default_factory=list)

    @property
    def last(self) -> exec_pb2.OutputEvent:
        """The last event."""
        return self.events[-1]

    @property
    def exited(self) -> exec_pb2.ExitInfo:
        """How it ended; the stream must have said so, last."""
        assert self.last.WhichOneof("event") == "exited", self.last
        return self.last.exited

    @property
    def replayed(self) -> bool:
        """Whether it had been started before."""
        return self.events[0].started.replayed

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """Ranges that were not kept."""
        found = [each.gap for each in self.events if each.WhichOneof("event") == "gap"]
        return [(each.from_offset, each.to_offset) for each in found]

    def output(self, *streams: int) -> bytes:
        """The bytes of these streams, of all when none is named."""
        found = [each.output for each in self.events if each.WhichOneof("event") == "output"]
        return b"".join(each.data for each in found if not streams or each.stream in streams)

    @property
    def text(self) -> str:
        """All output as text."""
        return self.output().decode()


def read(stream: Iterable[exec_pb2.OutputEvent]) -> Seen:
    """Read a stream to its end and check its grammar."""
    seen = Seen(list(stream))
    kinds = [each.WhichOneof("event") for each in seen.events]
    assert [each.HasField("started") for each in seen.events] == [True] + [False] * len(kinds[1:])
    assert kinds[-1] in ("exited", "detached", "failed")
    assert set(kinds[:-1]) <= {"output", "gap", "heartbeat", None}
    assert None not in kinds[1:], "only a start is told with nothing else"
    assert [each.seq for each in seen.events] == list(range(1, len(kinds) + 1))
    place = None
    for each in seen.events:
        kind = each.WhichOneof("event")
        if kind in ("output", "gap"):
            start = each.output.offset if kind == "output" else each.gap.from_offset
            assert place in (None, start), "offsets must follow each other"
            place = start + len(each.output.data) if kind == "output" else each.gap.to_offset
            assert len(each.output.data) <= 262_144
    return seen


class Stream:
    """A call's events; made only when the first has come, so that the server knows the id."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._first = [next(call)]

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> exec_pb2.OutputEvent:
        event: exec_pb2.OutputEvent = self._first.pop() if self._first else next(self._call)
        return event

    def cancel(self) -> None:
        """Go away."""
        self._call.cancel()

    def output(self) -> bytes:
        """Read until there is output."""
        found = next(each for each in self if each.WhichOneof("event") == "output")
        return found.output.data

    def line(self) -> bytes:
        """Read until a line is whole: a terminal may pass it in parts."""
        found = b""
        while not found.endswith(b"\n"):
            found += self.output()
        return found


class Jobs:
    """Starts programs and runs commands in shells."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.processes = exec_pb2_grpc.ProcessesStub(channel)
        self.shells = exec_pb2_grpc.ShellsStub(channel)

    def start(self, *argv: str, process_id: str = "", timeout: float = 0, **fields: Any) -> Stream:
        """Start a program; returns its stream."""
        request = exec_pb2.StartRequest(
            process_id=process_id or uuid.uuid4().hex, argv=argv, **fields
        )
        request.timeout.FromMicroseconds(int(timeout * 1e6))
        return Stream(self.processes.Start(request, timeout=60))

    def program(self, *argv: str, **fields: Any) -> Seen:
        """Run a program to its end."""
        return read(self.start(*argv, **fields))

    def bash(self, script: str, **fields: Any) -> Seen:
        """Run `bash -c` to its end."""
        return self.program("bash", "-c", script, **fields)

    def attach(self, process_id: str, offset: int = 0, *, follow: bool = True) -> Seen:
        """Attach to a program and read to the end of the stream."""
        request = exec_pb2.AttachRequest(process_id=process_id, offset=offset, follow=follow)
        return read(self.processes.Attach(request, timeout=60))

    def wait(self, process_id: str, seconds: int = 30) -> exec_pb2.Process:
        """Wait for a program's end."""
        request = exec_pb2.WaitRequest(process_id=process_id)
        request.max_wait.FromSeconds(seconds)
        response: exec_pb2.Process = self.processes.Wait(request, timeout=60)
        return response

    def write(self, process_id: str, *frames: tuple[int, bytes, bool]) -> exec_pb2.StdinState:
        """Send frames of offset, data and eof to a program's standard input."""
        messages = [
            exec_pb2.StdinFrame(process_id=process_id, offset=offset, data=data, eof=eof)
            for offset, data, eof in frames
        ]
        state: exec_pb2.StdinState = self.processes.WriteStdin(iter(messages), timeout=60)
        return state

    def signal(self, process_id: str, number: int, kill_after: float = 0, **fields: Any) -> None:
        """Signal a program."""
        request = exec_pb2.SignalRequest(process_id=process_id, signal=number, **fields)
        request.kill_after.FromMicroseconds(int(kill_after * 1e6))
        self.processes.Signal(request, timeout=30)

    def listed(self) -> dict[str, exec_pb2.Process]:
        """All programs by id."""
        response = self.processes.List(exec_pb2.ListProcessesRequest(), timeout=30)
        return {each.process_id: each for each in response.processes}

    def open(self, shell_id: str, **fields: Any) -> exec_pb2.Shell:
        """Open a shell."""
        request = exec_pb2.OpenShellRequest(shell_id=shell_id, **fields)
        shell: exec_pb2.Shell = self.shells.Open(request, timeout=30)
        return shell

    def run(
        self, shell_id: str, script: str, command_id: str = "", timeout: float = 0, **fields: Any
    ) -> Stream:
        """Run a command in a shell; returns its stream."""
        request = exec_pb2.RunRequest(
            shell_id=shell_id, command_id=command_id or uuid.uuid4().hex, script=script, **fields
        )
        request.timeout.FromMicroseconds(int(timeout * 1e6))
        return Stream(self.shells.Run(request, timeout=60))
