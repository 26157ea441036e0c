"""An exec server that was taken over: it gives signs of life for ever, and never an answer."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from cloister_api.exec.v1 import exec_pb2 as pb
from cloister_api.exec.v1 import exec_pb2_grpc
from cloister_sandbox.services.runtime import CAPABILITIES


class HostilePod(
    exec_pb2_grpc.ToolsServicer,
    exec_pb2_grpc.ShellsServicer,
    exec_pb2_grpc.ProcessesServicer,
    exec_pb2_grpc.FilesServicer,
    exec_pb2_grpc.RuntimeServicer,
):
    """Tests choose what it lacks, what it says once, and read what it was asked."""

    def __init__(self) -> None:
        self.capabilities: tuple[str, ...] = CAPABILITIES
        self.asked: list[str] = []
        self.begins = True
        """Whether streams of programs and commands say that these were started."""
        self.prints: bytes | None = None
        """What programs and commands print for ever, in place of heartbeats."""
        self._over = threading.Event()

    def add(self, server: grpc.Server) -> None:
        """Answer every call of a server."""
        for name, add in vars(exec_pb2_grpc).items():
            if name.startswith("add_"):
                add(self, server)

    def end(self) -> None:
        """Let what waits end."""
        self._over.set()

    def _for_ever(self, context: Any, sign: Callable[[], Any]) -> Iterator[Any]:
        while context.is_active() and not self._over.wait(0.02):
            yield sign()

    def _never(self, context: Any) -> None:
        while context.is_active() and not self._over.wait(0.02):
            pass

    def _events(self, context: Any, handle: str) -> Iterator[Any]:
        if self.begins:
            yield pb.OutputEvent(started=pb.Started(id=handle))
        offset = 0
        while self.prints is not None and context.is_active() and not self._over.is_set():
            yield pb.OutputEvent(output=pb.Output(offset=offset, data=self.prints))
            offset += len(self.prints)
        yield from self._for_ever(context, lambda: pb.OutputEvent(heartbeat=pb.Heartbeat()))

    def Info(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append("Info")
        return pb.RuntimeInfo(version="0.0.1", boot_id="b", capabilities=self.capabilities)

    def Call(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield from self._for_ever(context, lambda: pb.CallEvent(progress=pb.Progress()))

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append("Cancel")
        return pb.CancelResponse()

    def Open(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.Shell(shell_id=request.shell_id)

    def Close(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.CloseShellResponse()

    def Run(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield from self._events(context, request.command_id)

    def Start(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield pb.OutputEvent(started=pb.Started(id=request.process_id))
        if self.begins:
            yield pb.OutputEvent(detached=pb.Detached(process_id=request.process_id))
        else:
            yield from self._for_ever(context, lambda: pb.OutputEvent(heartbeat=pb.Heartbeat()))

    def Attach(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield from self._events(context, request.process_id)

    def Signal(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append("Signal")
        return pb.SignalResponse()

    def Wait(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append("Wait")
        return pb.Process(process_id=request.process_id, running=True)

    def Stat(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.Entry(path=request.path, type=pb.Entry.TYPE_FILE, size=100)

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Of files: an entry, and the end of the connection."""
        self.asked.append("List")
        yield pb.Entry(path=f"{request.path}/one", type=pb.Entry.TYPE_FILE)
        context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    def Download(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield pb.Chunk(entry=pb.Entry(path=request.path, size=100), data=b"x")
        yield from self._for_ever(context, lambda: pb.Chunk(offset=1))

    def Upload(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._never(context)
        context.abort(grpc.StatusCode.UNAVAILABLE, "over")

    def Grep(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield from self._for_ever(context, lambda: pb.GrepEvent(line=pb.GrepLine(text="x")))

    def Watch(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield pb.WatchEvent(type=pb.WatchEvent.TYPE_READY)
        yield from self._for_ever(context, lambda: pb.WatchEvent(type=pb.WatchEvent.TYPE_HEARTBEAT))


@contextlib.contextmanager
def hostile() -> Iterator[HostilePod]:
    """One whose calls end with the context."""
    made = HostilePod()  # type: ignore[abstract]
    try:
        yield made
    finally:
        made.end()
