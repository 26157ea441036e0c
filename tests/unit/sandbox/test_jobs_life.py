"""Programs and shells in the life of the server: who may, idleness, drain, bounds, leaks."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.main import TOLD_TO_END
from support.jobs import Jobs, Seen, read
from support.sandbox_server import SESSION_NAME, Sandbox, refused, sandbox

SHUTDOWN = exec_pb2.ExitInfo.REASON_SHUTDOWN
SERVICES = ("Processes", "Shells")


@contextlib.contextmanager
def running(directory: Path, **options: Any) -> Iterator[tuple[Sandbox, Jobs]]:
    """A claimed server of its own, for tests that end or exhaust it."""
    with sandbox(directory, **options) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            yield server, Jobs(channel)


def every_method() -> list[tuple[str, str]]:
    return [
        (service, method.name)
        for service in SERVICES
        for method in exec_pb2.DESCRIPTOR.services_by_name[service].methods
    ]


@pytest.mark.parametrize(("service", "method"), every_method())
def test_a_foreign_session_may_not_call_anything(
    claimed: Sandbox, service: str, method: str
) -> None:
    foreign = claimed.authority.issue(uri="session:other")
    descriptor = exec_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    requests = "stream" if descriptor.client_streaming else "unary"
    responses = "stream" if descriptor.server_streaming else "unary"
    with claimed.channel(foreign, SESSION_NAME) as channel:
        call: Any = getattr(channel, f"{requests}_{responses}")(
            f"/cloister.exec.v1.{service}/{method}"
        )
        message: Any = iter([b""]) if descriptor.client_streaming else b""
        with refused(grpc.StatusCode.PERMISSION_DENIED, reason="NOT_YOUR_SANDBOX"):
            answer = call(message, timeout=10)
            assert not descriptor.server_streaming or list(answer)


def test_nothing_starts_before_the_claim(tmp_path: Path) -> None:
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        with server.operator() as channel:
            jobs = Jobs(channel)
            with refused(grpc.StatusCode.UNAVAILABLE, reason="NOT_CLAIMED"):
                jobs.program("true")
            with refused(grpc.StatusCode.UNAVAILABLE, reason="NOT_CLAIMED"):
                jobs.open("s")


def test_capabilities_name_them(claimed: Sandbox) -> None:
    with claimed.worker() as channel:
        info = exec_pb2_grpc.RuntimeStub(channel).Info(exec_pb2.InfoRequest(), timeout=5)
    assert {"shells", "processes", "terminal"} <= set(info.capabilities)


def test_what_runs_is_activity_whoever_listens(claimed: Sandbox) -> None:
    with claimed.worker() as channel:
        runtime, jobs = exec_pb2_grpc.RuntimeStub(channel), Jobs(channel)

        def busy() -> int:
            response = runtime.Activity(exec_pb2.ActivityRequest(), timeout=5)
            count: int = response.running_calls
            return count

        assert busy() == 0
        jobs.start("cat", process_id="active", stdin=True).cancel()
        jobs.open("active")
        jobs.program("rm", "-f", "go")
        jobs.program("mkfifo", "go")
        command = jobs.run("active", "cat go")
        assert busy() == 2
        jobs.write("active", (0, b"", True))
        assert not jobs.wait("active").running
        jobs.bash("echo x > go")
        read(command)
        jobs.wait("active")
        assert busy() == 0


def test_drain_ends_programs_and_commands_and_says_why(tmp_path: Path) -> None:
    with running(tmp_path) as (server, jobs):
        jobs.open("s")
        jobs.bash("setsid sleep 4751 >/dev/null 2>&1 & echo left")
        program = jobs.start("bash", "-c", "trap '' TERM INT; setsid sleep 4751 & echo up; wait")
        command = jobs.run("s", "echo up; sleep 4751")
        assert (program.output(), command.output()) == (b"up\n", b"up\n")
        with server.operator(SESSION_NAME) as channel:
            runtime = exec_pb2_grpc.RuntimeStub(channel)
            runtime.Drain(exec_pb2.DrainRequest(), timeout=30)
        assert Seen(list(program)).exited.reason == SHUTDOWN
        assert Seen(list(command)).exited.reason == SHUTDOWN
        with refused(grpc.StatusCode.UNAVAILABLE, reason="DRAINING"):
            jobs.program("true")


def test_what_was_begun_is_attached_to_while_the_pod_is_drained(tmp_path: Path) -> None:
    with running(tmp_path) as (server, jobs):
        jobs.open("s")
        program = jobs.start("sh", "-c", "echo one; sleep 4753", process_id="p")
        command = jobs.run("s", "echo two; sleep 4753", command_id="c")
        assert (program.output(), command.output()) == (b"one\n", b"two\n")
        with server.operator(SESSION_NAME) as channel:
            runtime = exec_pb2_grpc.RuntimeStub(channel)
            runtime.Drain(exec_pb2.DrainRequest(), timeout=30)
        again = read(jobs.start("sh", "-c", "echo one; sleep 4753", process_id="p"))
        assert (again.text, again.replayed, again.exited.reason) == ("one\n", True, SHUTDOWN)
        for fields in ({"script": "echo two; sleep 4753"}, {"script": "", "attach_only": True}):
            again = read(jobs.run("s", command_id="c", **fields))
            assert (again.text, again.replayed, again.exited.reason) == ("two\n", True, SHUTDOWN)
        with refused(grpc.StatusCode.UNAVAILABLE, reason="DRAINING"):
            jobs.run("s", "echo new")


def test_drain_lets_programs_finish(tmp_path: Path) -> None:
    with running(tmp_path) as (server, jobs):
        program = jobs.start("bash", "-c", "echo up; read x; echo $x", process_id="p", stdin=True)
        assert program.output() == b"up\n"
        with server.operator(SESSION_NAME) as channel:
            draining = server.begin_drain(channel)
            jobs.write("p", (0, b"late\n", False))
            assert program.output() == b"late\n"
            draining.result()
        assert Seen(list(program)).exited.code == 0


def test_sigterm_ends_programs(tmp_path: Path) -> None:
    with running(tmp_path) as (server, jobs):
        program = jobs.start("bash", "-c", "echo up; setsid sleep 4752 & sleep 4752")
        assert program.output() == b"up\n"
        jobs.open("s")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == TOLD_TO_END


@pytest.mark.long
def test_what_hundreds_of_programs_left_ends_with_the_server(tmp_path: Path) -> None:
    """To look for what each of them left alone would take longer than a pod has for its end."""
    with running(tmp_path) as (server, jobs):
        for _ in range(200):
            assert jobs.bash("sleep 4761 > /dev/null 2>&1 & exit 0").exited.surviving_processes
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == TOLD_TO_END


@pytest.mark.long
def test_nothing_leaks(tmp_path: Path) -> None:
    # Each round opens descriptors of every kind; forty rounds would exhaust the bound.
    with running(tmp_path, open_files=64) as (_, jobs):
        size = exec_pb2.TerminalSize(columns=80, rows=24)
        for number in range(40):
            jobs.bash("head -c 700000 /dev/zero; exit 1", process_id=f"p{number}")
            jobs.program("true", terminal=size)
            jobs.program("no-such", terminal=size)
            jobs.program("no-such", stdin=True)
            jobs.start("cat", process_id=f"c{number}", stdin=True).cancel()
            jobs.write(f"c{number}", (0, b"x", True))
            jobs.open(f"s{number}")
            jobs.run(f"s{number}", "sleep 4753 & exit 1").cancel()
            closing = exec_pb2.CloseShellRequest(shell_id=f"s{number}")
            jobs.shells.Close(closing, timeout=10)
            jobs.processes.Release(exec_pb2.ReleaseRequest(process_id=f"p{number}"))
        assert jobs.program("echo", "fine").text == "fine\n"
        assert jobs.bash("pgrep -fx 'sleep 4753' | wc -l").text == "0\n"
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.long
def test_what_is_kept_and_what_runs_is_bounded(tmp_path: Path) -> None:
    with running(tmp_path) as (_, jobs):
        jobs.program("true", process_id="oldest")
        streams = [
            jobs.start("cat", process_id=f"p{number}", stdin=True, detach=True)
            for number in range(256)
        ]
        assert len(streams) == 256
        with refused(grpc.StatusCode.NOT_FOUND):
            jobs.attach("oldest")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="google.rpc.RetryInfo"):
            jobs.program("true")
        for number in range(64):
            jobs.open(f"s{number}")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY_SHELLS"):
            jobs.open("one-more")
