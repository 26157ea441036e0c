"""Sends drawn requests to an exec server, and says whether it stood them."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import hypothesis
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from faults.messages import IDS, Requests
from support.memory import peak
from support.sandbox_server import Sandbox, processes_with

MAX_RESIDENT = 256 * 1024 * 1024
"""Bytes that the server may occupy, whatever it is asked."""
_DOCUMENTED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_DETAILS = "grpc-status-details-bin"
_DOMAIN = b"exec.cloister.dev"
_WAITING = frozenset({"Watch", "Attach", "Start", "Wait", "WriteStdin"})
"""What may wait for a program or a change without end: left after a moment."""
_MOMENT = 0.15
_HANG_SECONDS = 60.0
_AT_ONCE = 8


def methods() -> list[MethodDescriptor]:
    """Every call of every service."""
    services = exec_pb2.DESCRIPTOR.services_by_name.values()
    return [method for service in services for method in service.methods]


@dataclass
class Fuzzer:
    """One server under fuzz."""

    server: Sandbox
    channel: grpc.Channel
    statuses: Counter[str] = field(default_factory=Counter)
    contexts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        directories = [self.server.workspace, Path(self.server.env["CLOISTER_HOME"])]
        self.requests = Requests([str(each) for each in directories])
        self.furnish()
        self.info()
        self.before = self._holdings()

    @property
    def calls(self) -> int:
        """Calls that were made."""
        return self.statuses.total()

    def furnish(self) -> None:
        """Put something of every kind where the drawn paths lead."""
        workspace = self.server.workspace
        # Calls before may have put something of another kind there.
        with suppress(OSError):
            (workspace / "dir").mkdir(exist_ok=True)
            (workspace / "a").write_text("a line\nb line\n")
            (workspace / "dir" / "b").write_text("b")
            (workspace / "binary").write_bytes(bytes(range(256)))
            (workspace / "big").write_bytes(b"line\n" * 200_000)
        with suppress(OSError):
            os.mkfifo(workspace / "fifo")
        for name, target in (("link", "/etc"), ("loop", "loop")):
            with suppress(OSError):
                (workspace / name).symlink_to(target)

    def fuzz(self, method: MethodDescriptor, examples: int, seed: int | None = None) -> None:
        """Make so many calls of one method; seed: None draws the same ones in every run."""
        frames = self.requests.frames(method)
        self._draw(frames, lambda drawn: self.send(method, drawn), examples, seed)

    def _draw(
        self,
        strategy: st.SearchStrategy[Any],
        body: Callable[[Any], None],
        examples: int,
        seed: int | None,
    ) -> None:
        test: Any = hypothesis.given(strategy)(body)
        if seed is not None:
            test = hypothesis.seed(seed)(test)
        hypothesis.settings(
            max_examples=examples,
            derandomize=seed is None,
            database=None,
            deadline=None,
            # What a call does depends on those before it: nothing to be shrunk.
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )(test)()
        self.info()

    def fuzz_at_once(self, rounds: int, seed: int | None = None) -> None:
        """So many rounds of calls of any methods, those of a round side by side."""
        each = st.sampled_from(methods()).flatmap(
            lambda method: st.tuples(st.just(method), self.requests.frames(method))
        )
        with ThreadPoolExecutor(_AT_ONCE) as pool:

            def body(calls: list[tuple[MethodDescriptor, list[bytes]]]) -> None:
                for sent in [pool.submit(self.send, *call) for call in calls]:
                    sent.result()

            self._draw(st.lists(each, min_size=2, max_size=_AT_ONCE), body, rounds, seed)

    def send(self, method: MethodDescriptor, frames: list[bytes]) -> None:
        """Make one call, of these encoded messages; raises AssertionError for a wrong answer."""
        self._remember(method, frames)
        code, details, typed = self._call(method, frames)
        self.statuses[f"{method.name} {code.name}"] += 1
        left = method.name in _WAITING and code is grpc.StatusCode.DEADLINE_EXCEEDED
        shown = f"{method.full_name} {[each[:500] for each in frames]}: {code} {details!r}"
        assert left or code in _DOCUMENTED, shown
        assert left or code is grpc.StatusCode.OK or _DOMAIN in typed, f"no details: {shown}"
        assert self.server.process.poll() is None, f"the server ended: {shown}"

    def _call(
        self, method: MethodDescriptor, frames: list[bytes]
    ) -> tuple[grpc.StatusCode, str, bytes]:
        assert method.containing_service is not None
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer = message_factory.GetMessageClass(method.output_type).FromString
        shape = "_".join(
            "stream" if streams else "unary"
            for streams in (method.client_streaming, method.server_streaming)
        )
        call = getattr(self.channel, shape)(
            path, request_serializer=bytes, response_deserializer=answer
        )
        request: Any = iter(frames) if method.client_streaming else frames[0]
        seconds = _MOMENT if method.name in _WAITING else _HANG_SECONDS
        try:
            found = call(request, timeout=seconds)
            if method.server_streaming:
                for _ in found:
                    if method.name == "Watch":
                        break  # it is set; nothing need ever change
                found.cancel()
        except grpc.RpcError as error:
            failed: Any = error
            trailers = dict(failed.trailing_metadata() or ())
            return failed.code(), failed.details(), trailers.get(_DETAILS, b"")
        return grpc.StatusCode.OK, "", b""

    def _remember(self, method: MethodDescriptor, frames: list[bytes]) -> None:
        """Which contexts there may be now: nothing lists them."""
        if method.input_type.name == "CallRequest":
            with suppress(DecodeError):
                self.contexts.add(exec_pb2.CallRequest.FromString(frames[0]).context_id)

    def info(self) -> None:
        """Raise unless the server answers, promptly, and is of bounded size."""
        stub = exec_pb2_grpc.RuntimeStub(self.channel)
        state = stub.Info(exec_pb2.InfoRequest(), timeout=10).state
        assert state == exec_pb2.RuntimeInfo.STATE_CLAIMED
        assert self.resident() < MAX_RESIDENT

    def resident(self) -> int:
        """The most bytes of memory that the server had."""
        return peak(self.server.process.pid)

    def close_everything(self) -> None:
        """End what calls have begun, then raise unless nothing of it is left."""
        tools: Any = exec_pb2_grpc.ToolsStub(self.channel)
        for context in self.contexts:
            with suppress(grpc.RpcError):
                tools.CloseContext(exec_pb2.CloseContextRequest(context_id=context), timeout=30)
        self.contexts.clear()
        shells: Any = exec_pb2_grpc.ShellsStub(self.channel)
        for shell in shells.List(exec_pb2.ListShellsRequest(), timeout=30).shells:
            shells.Close(exec_pb2.CloseShellRequest(shell_id=shell.shell_id), timeout=30)
        self._release_programs()
        self._settle()

    def _release_programs(self) -> None:
        programs: Any = exec_pb2_grpc.ProcessesStub(self.channel)
        for each in programs.List(exec_pb2.ListProcessesRequest(), timeout=30).processes:
            with suppress(grpc.RpcError):  # it may have ended meanwhile
                programs.Signal(
                    exec_pb2.SignalRequest(
                        process_id=each.process_id,
                        signal=9,
                        scope=exec_pb2.SignalRequest.SCOPE_TREE,
                    ),
                    timeout=30,
                )
            wait = exec_pb2.WaitRequest(process_id=each.process_id)
            wait.max_wait.FromSeconds(30)
            assert not programs.Wait(wait, timeout=40).running, each
            programs.Release(exec_pb2.ReleaseRequest(process_id=each.process_id), timeout=30)

    def _settle(self) -> None:
        """Wait until the server holds what it held at first; raises when it never does."""
        deadline = time.monotonic() + 20
        while True:
            after = self._holdings()
            # Two for each interrupted upload, which is kept to be gone on with.
            kept = 2 * (len(IDS) + 1) + 8
            leaked = [
                name
                for name, slack in (("files", 0), ("descriptors", kept), ("processes", 0))
                if after[name] > self.before[name] + slack
            ]
            if not leaked:
                return
            assert time.monotonic() < deadline, (leaked, self.before, after, list(self._leaked()))
            time.sleep(0.05)

    def _holdings(self) -> dict[str, int]:
        state = Path(self.server.env["CLOISTER_STATE_DIR"])
        return {
            "files": sum(1 for _ in state.rglob("*")),
            "descriptors": len(os.listdir(f"/proc/{self.server.process.pid}/fd")),  # noqa: PTH208
            "processes": len(processes_with(f"HOME={self.server.env['CLOISTER_HOME']}")),
        }

    def _leaked(self) -> Iterator[str]:
        for each in Path(f"/proc/{self.server.process.pid}/fd").iterdir():
            with suppress(OSError):
                yield f"{each.name} -> {each.readlink()}"
        yield from map(str, Path(self.server.env["CLOISTER_STATE_DIR"]).rglob("*"))
        yield from processes_with(f"HOME={self.server.env['CLOISTER_HOME']}")
