"""What would not end: programs whose end another keeps to itself, or that became another user.

The server is PID 1 of a PID namespace, as in a pod, and without the right to signal other users.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.guard import STOP
from support.file_calls import eventually
from support.jobs import Jobs, Stream
from support.pods import LIKE_A_ROOTISH_POD, claimed_pod
from support.sandbox_server import SESSION_NAME, Sandbox, Tools

pytestmark = pytest.mark.long

INFO = exec_pb2.ExitInfo
OTHER = "setpriv --reuid=4242 --regid=4242 --clear-groups"
TRACES = """
import ctypes, signal, sys
SEIZE = 0x4206
for each in sys.argv[1:]:
    assert ctypes.CDLL(None).ptrace(SEIZE, int(each), 0, 0) == 0
print("traced", flush=True)
while True:
    signal.pause()
"""


STOPS_ALL = """
import contextlib, os, signal
print("on", flush=True)
while True:
    with contextlib.suppress(ProcessLookupError):  # there is nobody else
        os.kill(-1, signal.SIGSTOP)
"""


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with claimed_pod(tmp_path_factory.mktemp("pod"), STOP) as server:
        yield server


@pytest.fixture(scope="module")
def rootish(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    directory = tmp_path_factory.mktemp("rootish")
    with claimed_pod(directory, STOP, within=LIKE_A_ROOTISH_POD) as server:
        yield server


@pytest.fixture
def tools(pod: Sandbox) -> Iterator[Tools]:
    with pod.worker() as channel:
        yield Tools(channel)


@pytest.fixture
def jobs(pod: Sandbox) -> Iterator[Jobs]:
    with pod.worker() as channel:
        yield Jobs(channel)


@pytest.fixture
def root(rootish: Sandbox) -> Iterator[Tools]:
    with rootish.worker() as channel:
        yield Tools(channel)


def traced(jobs: Jobs, pid: str) -> Stream:
    """A program that traces another one, and never looks how it ends."""
    tracer = jobs.start("python3", "-c", TRACES, pid)
    assert tracer.line() == b"traced\n"
    return tracer


@contextlib.contextmanager
def kept_from_ending(pids: list[str]) -> Iterator[None]:
    """Processes that are traced from outside their pod."""
    command = [sys.executable, "-c", TRACES, *pids]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"traced\n"
        yield
        tracer.kill()


def sleeping(seconds: int) -> list[str]:
    """The processes that sleep for so long, as seen from outside their pod."""
    found = subprocess.run(["pgrep", "-fx", f"sleep {seconds}"], capture_output=True, text=True)
    return found.stdout.split()


def close(tools: Tools, context: str) -> None:
    tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id=context), timeout=40)


def running(tools: Tools, seconds: int) -> str:
    """The processes that sleep for so long, by what they show of themselves."""
    return tools.bash(f"pgrep -fx 'sleep {seconds}' || echo none", context_id="looks")


def test_a_program_ends_though_another_traces_it(jobs: Jobs) -> None:
    victim = jobs.start("bash", "-c", "echo $$; exec sleep 611", process_id="traced")
    tracer = traced(jobs, victim.line().decode().strip())
    jobs.signal("traced", signal.SIGTERM, kill_after=0.1)
    ended = jobs.wait("traced")
    assert not ended.running
    assert ended.exit.signal == signal.SIGKILL
    tracer.cancel()


def test_a_context_is_closed_though_another_traces_its_shell(jobs: Jobs, tools: Tools) -> None:
    tracer = traced(jobs, tools.bash("echo $$", context_id="traced"))
    close(tools, "traced")
    assert tools.bash("echo on", context_id="traced") == "on"
    tracer.cancel()


def test_a_command_ends_in_time_though_another_traces_its_shell(jobs: Jobs, tools: Tools) -> None:
    tracer = traced(jobs, tools.bash("echo $$", context_id="waits"))
    found = tools.call("bash", context_id="waits", command="sleep 612", timeout_ms=200)
    assert "timed out" in found.content[0].text
    assert found.state_lost
    assert tools.bash("echo on", context_id="waits") == "on"
    tracer.cancel()


def test_the_server_ends_though_one_program_traces_another(tmp_path: Path) -> None:
    with (
        claimed_pod(tmp_path, STOP) as server,
        server.worker() as channel,
    ):
        tools, jobs = Tools(channel), Jobs(channel)
        victim = jobs.start("bash", "-c", "echo $$; exec sleep 613").line().decode().strip()
        tools.call("write", file_path="traces.py", content=TRACES)
        command = f"mkfifo out; python3 traces.py {victim} > out & read line < out; echo $line"
        assert tools.bash(command) == "traced"


def test_no_result_waits_for_what_ends_late_as_the_server_ends(tmp_path: Path) -> None:
    """The kubelet waits for five seconds; each of those that are traced takes two."""
    told: list[str] = []
    with (
        claimed_pod(tmp_path, STOP) as server,
        server.worker() as channel,
        server.operator(SESSION_NAME) as operator,
        ThreadPoolExecutor() as pool,
        contextlib.ExitStack() as stack,
    ):
        tools, jobs = Tools(channel), Jobs(channel)
        jobs.open("traced")
        late = [
            jobs.start("bash", "-c", "echo up; exec sleep 614"),
            jobs.run("traced", "echo up; exec sleep 614"),
        ]
        assert [each.line() for each in late] == [b"up\n"] * 2
        eventually(lambda: len(sleeping(614)) == 2)
        # From outside: a tracer of the session's own would end with it, and free what it traces.
        stack.enter_context(kept_from_ending(sleeping(614)))
        tools.bash("mkfifo begun")

        def command() -> str:
            words = "echo kept; echo > begun; sleep 615"
            text = tools.call("bash", context_id="other", command=words).content[0].text
            told.append("result")
            return text

        result = pool.submit(command)
        (server.workspace / "begun").read_bytes()
        runtime = exec_pb2_grpc.RuntimeStub(operator)
        drained = runtime.Drain.future(exec_pb2.DrainRequest(), timeout=60)
        for each in late:
            ends = pool.submit(list, each)
            ends.add_done_callback(lambda _: told.append("late"))
        assert result.result().startswith("kept\n")
        drained.result()
    assert told == ["result", "late", "late"]


def test_what_is_stopped_before_it_runs_is_let_go_on(jobs: Jobs, tools: Tools) -> None:
    stopper = jobs.start("python3", "-c", STOPS_ALL, process_id="stops")
    assert stopper.line() == b"on\n"
    names = [f"stopped-{number}" for number in range(8)]
    for each in names:
        jobs.start("true", process_id=each)
    with ThreadPoolExecutor(8) as pool:
        # These are started in threads that other calls need.
        searching = [
            pool.submit(tools.call, "grep", context_id=each, budget=2, pattern="x")
            for each in names
        ]
        jobs.signal("stops", signal.SIGKILL)
        for each in names:
            with contextlib.suppress(grpc.RpcError):  # it has ended
                jobs.signal(each, signal.SIGCONT)
            assert not jobs.wait(each).running
        assert all(found.result().content[0].text for found in searching)


def test_a_command_of_another_user_ends_and_its_shell_goes_on(root: Tools) -> None:
    root.bash("x=kept", context_id="other")
    command = f"{OTHER} sleep 621"
    found = root.call("bash", context_id="other", command=command, timeout_ms=500)
    assert "timed out" in found.content[0].text
    assert running(root, 621) == "none"
    assert root.bash("echo $x", context_id="other") == "kept"


def test_a_shell_that_became_another_user_is_replaced(root: Tools) -> None:
    command = f"exec {OTHER} sleep 622"
    found = root.call("bash", context_id="became", command=command, timeout_ms=500)
    assert "timed out" in found.content[0].text
    assert found.state_lost
    assert running(root, 622) == "none"
    close(root, "became")


def test_what_another_user_goes_on_with_is_counted_and_ends_with_its_context(root: Tools) -> None:
    command = f"{OTHER} setsid --fork env -i sleep 623 < /dev/null > /dev/null 2>&1"
    found = root.call("bash", context_id="left", command=command)
    assert found.exit.surviving_processes == 1
    root.bash("true", context_id="beside")
    close(root, "beside")
    assert running(root, 623) != "none", "it is another context's"
    close(root, "left")
    assert running(root, 623) == "none"


@pytest.mark.parametrize("how", ["timeout", "signal"])
def test_a_program_that_became_another_user_ends(rootish: Sandbox, how: str) -> None:
    argv: Any = (*OTHER.split(), "sleep", "624")
    with rootish.worker() as channel:
        jobs = Jobs(channel)
        jobs.start(*argv, process_id=how, timeout=0.3 if how == "timeout" else 0)
        if how == "signal":
            jobs.signal(how, signal.SIGTERM)
        ended = jobs.wait(how)
        assert not ended.running
        wanted = INFO.REASON_TIMED_OUT if how == "timeout" else INFO.REASON_SIGNALLED
        assert ended.exit.reason == wanted
        assert running(Tools(channel), 624) == "none"


def test_who_became_many_users_leaves_the_server_closed(root: Tools) -> None:
    """The kernel decides with each change of user whether a process may be looked into."""
    root.call("bash", command=f"{OTHER} sleep 625", timeout_ms=300)
    assert root.bash("cat /proc/1/environ").endswith("[exit code 1]")
    assert root.bash("grep -cP 'Uid:(\\t0){4}' /proc/1/task/*/status | grep -cv ':1$'") == (
        "0\n[exit code 1]"
    )
