"""The server's life: activity, health, drain, signals, orphans; and that nothing leaks."""

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.guard import STOP
from cloister_sandbox.main import OPEN_FILES, TOLD_TO_END
from cloister_sandbox.signals import ends_server
from support.file_calls import eventually
from support.sandbox_server import SESSION_NAME, Sandbox, Tools, refused, sandbox


@contextlib.contextmanager
def running(directory: Path, **options: Any) -> Iterator[tuple[Sandbox, Tools]]:
    """A claimed server of its own, for tests that end or exhaust it."""
    with sandbox(directory, **options) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            yield server, Tools(channel)


def activity(channel: grpc.Channel) -> exec_pb2.ActivityResponse:
    response: exec_pb2.ActivityResponse = exec_pb2_grpc.RuntimeStub(channel).Activity(
        exec_pb2.ActivityRequest(), timeout=5
    )
    return response


def test_a_running_command_is_activity(claimed: Sandbox, tools: Tools) -> None:
    tools.bash("rm -f begun end; mkfifo begun end")
    with claimed.worker() as channel, ThreadPoolExecutor() as pool:
        before = activity(channel)
        assert before.running_calls == 0
        assert before.idle_for.ToNanoseconds() > 0
        call = pool.submit(tools.bash, "echo > begun; cat end")
        tools.call("bash", context_id="side", command="cat begun")
        during = activity(channel)
        assert (during.running_calls, during.idle_for.ToNanoseconds()) == (1, 0)
        tools.call("bash", context_id="side", command="echo > end")
        call.result()
        after = activity(channel)
        assert after.running_calls == 0
        assert after.active.ToNanoseconds() > before.active.ToNanoseconds()


def test_health_changes_are_watched(tmp_path: Path) -> None:
    with running(tmp_path) as (server, _), server.operator(SESSION_NAME) as channel:
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        statuses = watch(b"", timeout=20)
        assert next(statuses) == b"\x08\x01"
        runtime = exec_pb2_grpc.RuntimeStub(channel)
        runtime.Drain(exec_pb2.DrainRequest(), timeout=10)
        assert next(statuses) == b"\x08\x02"
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        with refused(grpc.StatusCode.NOT_FOUND):
            check(b"\x0a\x01x", timeout=5)


def test_drain_lets_calls_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    with running(tmp_path) as (server, tools), ThreadPoolExecutor() as pool:
        tools.bash("mkfifo begun end")
        call = pool.submit(tools.bash, "echo > begun; cat end")
        (server.workspace / "begun").read_bytes()
        with server.operator(SESSION_NAME) as channel:
            draining = server.begin_drain(channel)
            with refused(grpc.StatusCode.UNAVAILABLE, reason="DRAINING"):
                tools.bash("echo late")
            (server.workspace / "end").write_text("finished")
            assert call.result() == "finished"
            draining.result()


def test_a_call_that_runs_or_ran_is_answered_while_the_pod_is_drained(tmp_path: Path) -> None:
    with running(tmp_path) as (server, tools), ThreadPoolExecutor() as pool:
        tools.bash("mkfifo begun end")
        given: dict[str, Any] = {"command": "echo > begun; cat end"}
        first = pool.submit(tools.call, "bash", request_id="cut", **given)
        (server.workspace / "begun").read_bytes()
        with server.operator(SESSION_NAME) as channel:
            draining = server.begin_drain(channel)
            again = pool.submit(tools.call, "bash", request_id="cut", **given)
            with refused(grpc.StatusCode.ALREADY_EXISTS, reason="ID_CONFLICT"):
                tools.call("bash", request_id="cut", command="echo other")
            (server.workspace / "end").write_text("finished")
            assert not first.result().replayed
            assert again.result().replayed
            draining.result()
        kept = tools.call("bash", request_id="cut", **given)
        assert (kept.content[0].text, kept.replayed) == ("finished", True)


def test_drain_ends_what_outlasts_its_grace(tmp_path: Path) -> None:
    with running(tmp_path) as (server, tools), ThreadPoolExecutor() as pool:
        tools.bash("mkfifo begun; sleep 4720 &")
        call = pool.submit(tools.call, "bash", command="echo partial; echo > begun; sleep 4720")
        (server.workspace / "begun").read_bytes()
        with server.operator(SESSION_NAME) as channel:
            runtime = exec_pb2_grpc.RuntimeStub(channel)
            runtime.Drain(exec_pb2.DrainRequest(), timeout=30)
        result = call.result()
        assert result.is_error
        assert result.exit.reason == exec_pb2.ExitInfo.REASON_SHUTDOWN
        assert result.content[0].text.startswith("partial\n")


def test_sigterm_drains_and_exits_cleanly(tmp_path: Path) -> None:
    with running(tmp_path) as (server, tools):
        tools.bash("sleep 4721 & setsid sleep 4721 & disown -a")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == TOLD_TO_END


@pytest.mark.parametrize(
    ("number", "sender", "user", "code", "own_pid", "obeyed"),
    [
        (STOP, 0, 0, 0, 1, True),
        (STOP, 17, 0, 0, 1, False),
        (STOP, 0, 0, -1, 1, False),
        (signal.SIGTERM, 0, 65_534, 0, 1, True),
        (signal.SIGTERM, 17, 1000, 0, 1, False),
        # Also what the kernel says when it forgot who sent it.
        (signal.SIGTERM, 0, 0, 0, 1, False),
        (signal.SIGTERM, 17, 0, 0, 99, True),
    ],
)
def test_in_a_pod_only_the_kubelet_ends_the_server(
    number: int, sender: int, user: int, code: int, own_pid: int, obeyed: bool
) -> None:
    assert ends_server(number, sender, user, code, own_pid) is obeyed


def test_tools_start_with_ordinary_signals(tools: Tools) -> None:
    status = tools.bash("grep -E '^Sig(Blk|Ign)' /proc/self/status")
    # The C library keeps signals from 32 up to itself: whoever starts the tests may ignore them.
    ordinary = (1 << 31) - 1
    assert [int(line.split()[1], 16) & ordinary for line in status.splitlines()] == [0, 0]
    assert tools.call("bash", command="sh -c 'kill -TERM $$'").exit.code == 143
    assert tools.call("bash", command="sh -c 'kill -INT $$'").exit.code == 130


def test_orphans_are_reaped(claimed: Sandbox, tools: Tools) -> None:
    tools.bash("mkfifo gone; for i in $(seq 20); do (setsid sh -c 'exec 3>gone; :' &); done")
    tools.bash("timeout 5 cat gone")
    children = f"ps -o stat= --ppid {claimed.process.pid} | grep -c ^Z"
    assert tools.bash(f"until test $({children}) = 0; do sleep 0.01; done; echo none") == "none"


def test_the_shell_survives_the_loss_of_its_files(claimed: Sandbox, tools: Tools) -> None:
    state = claimed.workspace.parent / "state"
    result = tools.call("bash", command=f"cd /usr; rm -rf {state}/*")
    assert not result.is_error
    lost = tools.call("bash", command="echo x")
    assert lost.is_error
    assert "a new shell was opened in /usr" in lost.content[0].text
    assert tools.bash("pwd") == "/usr"
    tools.call("bash", restart=True)


@pytest.mark.parametrize(("most", "allowed"), [(4096, 4096), (16_384, OPEN_FILES)])
def test_descriptors_are_allowed_for_all_connections_whatever_a_node_gives_at_first(
    tmp_path: Path, most: int, allowed: int
) -> None:
    at_first = ("/bin/bash", "-c", 'ulimit -Sn 300; exec "$@"', "-")
    with running(tmp_path, open_files=most, launcher=at_first) as (_, tools):
        assert tools.bash("ulimit -Sn; ulimit -Hn") == f"{allowed}\n{most}"


@pytest.mark.long
def test_nothing_leaks_into_the_next_call(tmp_path: Path) -> None:
    # Each round opens and abandons descriptors of every kind; forty rounds would exhaust the bound.
    with running(tmp_path, open_files=64) as (server, tools):
        files = exec_pb2_grpc.FilesStub(server.worker())
        (server.workspace / "f").write_bytes(b"x" * 100_000)
        for number in range(40):
            context = f"c{number}"
            tools.call("bash", context_id=context, command="(sleep 4722 &) ; exit 1")
            tools.call("grep", pattern="x", path="f")
            tools.call("read", file_path="f")
            tools.call("glob", pattern="**")
            stream = files.Download(exec_pb2.DownloadRequest(path="f"), timeout=10)
            next(stream)
            stream.cancel()
            closing = exec_pb2.CloseContextRequest(context_id=context)
            tools.stub.CloseContext(closing, timeout=10)
        assert tools.bash("echo fine") == "fine"
        assert tools.bash("pgrep -fx 'sleep 4722' | wc -l") == "0"
    state = tmp_path / "state"
    assert list(state.iterdir()) == []


@pytest.mark.long
def test_what_ends_while_connections_take_all_descriptors_ends_whole(tmp_path: Path) -> None:
    """What it started outlives it at most for as long as nobody can look for it."""
    with contextlib.ExitStack() as held, running(tmp_path, open_files=96) as (server, tools):
        tools.call("bash", context_id="c", command="(setsid -f sleep 4723 >/dev/null 2>&1)")
        tools.bash("true")
        own = Path(f"/proc/{server.process.pid}/fd")

        def taken() -> bool:
            made = held.enter_context(socket.socket())
            made.connect(("127.0.0.1", server.port))
            return len(list(own.iterdir())) >= 96

        eventually(taken)
        closing = exec_pb2.CloseContextRequest(context_id="c")
        tools.stub.CloseContext(closing, timeout=30)
        with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
            tools.stub.CloseContext(closing, timeout=30)
        held.pop_all().close()
        eventually(lambda: not sleeping())
        assert tools.bash("echo on") == "on"


def sleeping() -> bool:
    """Whether it goes on."""
    return subprocess.run(["pgrep", "-fx", "sleep 4723"], check=False).returncode == 0


def test_contexts_are_bounded(tmp_path: Path) -> None:
    with running(tmp_path) as (_, tools):
        for number in range(64):
            tools.call("read", context_id=f"c{number}", file_path="none")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY_CONTEXTS"):
            tools.call("read", context_id="one-more", file_path="none")
