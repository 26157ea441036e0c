"""What who reaches the server's port sends that no client would: bounded, and others are served."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.answers import Answers
from cloister_sandbox.errors import Busy
from cloister_sandbox.server import MAX_CONNECTIONS, MAX_RPCS, MAX_STREAMS
from support import raw_http2
from support.file_calls import eventually
from support.jobs import Jobs
from support.memory import grows_by_less_than, peak
from support.raw_http2 import CANCEL, END_HEADERS, RawConnection, frame, grpc_frame, headers
from support.sandbox_server import Sandbox, Tools, sandbox

pytestmark = pytest.mark.long

MIB = 1024 * 1024
STATUS = grpc.StatusCode


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("port"), open_files=4096) as started:
        started.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        started.claim()
        yield started


@pytest.fixture
def tools(server: Sandbox) -> Iterator[Tools]:
    with server.worker() as channel:
        yield Tools(channel)


@pytest.fixture
def raw(server: Sandbox, tmp_path: Path) -> Iterator[RawConnection]:
    with contextlib.closing(RawConnection(server, tmp_path)) as connection:
        yield connection


@contextlib.contextmanager
def bounded(server: Sandbox, tools: Tools, growth: int) -> Iterator[None]:
    """A block in which the server's memory grows by at most so many bytes, and goes on serving."""
    tools.bash("echo warm")
    with grows_by_less_than(server.process.pid, growth):
        yield
        assert tools.bash("echo on") == "on"


def test_calls_that_are_opened_without_end(
    server: Sandbox, tools: Tools, raw: RawConnection
) -> None:
    count = 20_000
    with bounded(server, tools, 96 * MIB):
        for number in range(count):
            opened = frame(raw_http2.HEADERS, END_HEADERS, 1 + 2 * number, headers("Tools/Call"))
            raw.send(opened)
        # How many more are let in, because others have ended, is up to the machine.
        assert raw.answers()[raw_http2.RESET] > MAX_STREAMS


def test_calls_beyond_all_that_run_at_once_are_refused(server: Sandbox, tools: Tools) -> None:
    tools.bash("mkfifo gate")
    request = exec_pb2.CallRequest(request_id="gate", tool="bash")
    request.input.update({"command": "cat gate; echo once >> ran"})
    more, refused = 300, 0
    with contextlib.ExitStack() as opened, bounded(server, tools, 128 * MIB):
        stubs = [Tools(opened.enter_context(server.worker())).stub for _ in range(6)]
        calls: list[Any] = [stubs[n % 6].Call(request, timeout=120) for n in range(MAX_RPCS + more)]
        eventually(lambda: sum(each.done() for each in calls) >= more, 60)
        (server.workspace / "gate").write_text("")
        for each in calls:
            try:
                assert [event.HasField("result") for event in each][-1]
            except grpc.RpcError as error:
                refusal: Any = error
                # gRPC's own words, of before the server knows of the call.
                assert refusal.code() in (STATUS.RESOURCE_EXHAUSTED, STATUS.CANCELLED)
                assert "grpc-status-details-bin" not in dict(refusal.trailing_metadata())
                refused += 1
        assert refused >= more
        assert (server.workspace / "ran").read_text() == "once\n"


def test_pings_that_come_too_fast_end_the_connection(raw: RawConnection) -> None:
    # How many are let pass before it has ended is up to gRPC.
    with pytest.raises((ConnectionError, ssl.SSLEOFError)):
        [raw.answers() for _ in range(10)]


def test_calls_that_are_reset_at_once(server: Sandbox, tools: Tools, raw: RawConnection) -> None:
    with bounded(server, tools, 96 * MIB):
        for number in range(20_000):
            stream = 1 + 2 * number
            opened = frame(raw_http2.HEADERS, END_HEADERS, stream, headers("Tools/Call"))
            raw.send(opened + frame(raw_http2.RESET, 0, stream, CANCEL))
        raw.answers()


def test_connections_without_end(server: Sandbox, tools: Tools) -> None:
    with contextlib.ExitStack() as opened, bounded(server, tools, 96 * MIB):
        for _ in range(MAX_CONNECTIONS + 100):
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        # Who is connected goes on being served.
        assert tools.bash("echo on") == "on"
        files = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert files < MAX_CONNECTIONS + 100


def test_handshakes_that_fail_fill_no_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        assert "ready" in capfd.readouterr().err
        for _ in range(20):
            address = ("127.0.0.1", server.port)
            with socket.create_connection(address) as strange, contextlib.suppress(OSError):
                strange.sendall(b"GET / HTTP/1.1\r\n\r\n")
                while strange.recv(4096):
                    pass
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        assert capfd.readouterr().err == ""


def test_large_answers_that_nobody_takes(server: Sandbox, tools: Tools) -> None:
    content = b"%PDF-1.7\n" + b"x" * 8 * MIB
    (server.workspace / "large.pdf").write_bytes(content)

    def read(request_id: str) -> exec_pb2.CallRequest:
        request = exec_pb2.CallRequest(request_id=request_id, tool="read")
        request.input.update({"file_path": "large.pdf"})
        return request

    with server.worker() as channel, bounded(server, tools, 256 * MIB):
        stub = Tools(channel).stub
        calls = [stub.Call(read(f"stalled-{number}"), timeout=60) for number in range(40)]
        pid = server.process.pid
        eventually(lambda: tools.bash("echo on") == "on" and peak(pid) > 100 * MIB)
        assert tools.bash("echo on") == "on"
        for each in calls:
            each.cancel()
        # Room is there again, and what nobody took is kept.
        result = tools.call("read", "stalled-0", file_path="large.pdf")
        assert result.content[0].document.data == content


@pytest.mark.parametrize("kind", ["results", "output"])
def test_thousands_of_answers_of_medium_size_that_nobody_takes(
    server: Sandbox, tools: Tools, tmp_path: Path, kind: str
) -> None:
    """Each is small enough; all of them were a gigabyte."""
    (server.workspace / "medium.pdf").write_bytes(b"%PDF-1.7\n" + b"x" * 900_000)
    read = exec_pb2.CallRequest(request_id="medium", tool="read")
    read.input.update({"file_path": "medium.pdf"})
    names = [f"medium-{number}" for number in range(30)]
    with server.worker() as channel:
        for name in names:
            Jobs(channel).bash("head -c 600000 /dev/zero", process_id=name)

    def call(number: int) -> tuple[str, bytes]:
        if kind == "results":
            return "Tools/Call", read.SerializeToString()
        request = exec_pb2.AttachRequest(process_id=names[number % len(names)], follow=True)
        return "Processes/Attach", request.SerializeToString()

    with contextlib.ExitStack() as opened, bounded(server, tools, 256 * MIB):
        for _ in range(2):
            raw = opened.enter_context(contextlib.closing(RawConnection(server, tmp_path)))
            raw.send(frame(raw_http2.SETTINGS, 0, 0, raw_http2.LITTLE))
            raw.send(frame(raw_http2.WINDOW, 0, 0, raw_http2.MUCH))
            for number in range(900):
                method, message = call(number)
                stream = 1 + 2 * number
                raw.send(
                    frame(raw_http2.HEADERS, END_HEADERS, stream, headers(method))
                    + frame(raw_http2.DATA, raw_http2.END_STREAM, stream, grpc_frame(message))
                )
        # What is to come has come.
        assert tools.bash("sleep 8; echo on") == "on"


async def test_large_answers_wait_for_each_other() -> None:
    answers = Answers(at_once=2, seconds=0.01)
    async with answers.room():
        async with answers.room():
            with pytest.raises(Busy):
                async with answers.room():
                    raise AssertionError("a third had room")
        async with answers.room():
            pass


async def test_who_takes_no_large_answer_gives_room_to_who_waits() -> None:
    answers = Answers(at_once=1, seconds=0.01, send_seconds=0, stalled=1)

    async def refused() -> None:
        with pytest.raises(Busy):
            async with answers.room():
                raise AssertionError("there was room")

    async with answers.room():
        await refused()
        async with answers.room():
            # No more than one is passed over.
            await refused()
            await refused()
        async with answers.room():
            pass
    # It has come to its end: another may stall.
    async with answers.room():
        await refused()
        async with answers.room():
            pass
