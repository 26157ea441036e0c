"""A bash `:` through the exec server next to a bare gRPC echo of the same shape, in one run.

Both servers are processes of their own on loopback, with mutual TLS; one synchronous client calls
them in turn, so that whatever slows the machine down slows both. Prints the figures and writes
bench/results/exec.json.

    python bench/bench_exec.py [CALLS]
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from cryptography import x509

sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.local_server import (
    Authority,
    channel,
    free_port,
    resident_mb,
    running,
    write_identity,
)
from bench.results import percentile, save, table

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
CALLS = 3000
WARM_UP = 300
STARTS = 7
POD_UID = "bench-pod"
SESSION_UID = "bench-session"
POD_NAME = f"pod-{POD_UID}.sandbox.cloister.dev"
SESSION_NAME = f"session-{SESSION_UID}.sandbox.cloister.dev"
OPERATOR = "operator:cloister"
Server = tuple["subprocess.Popen[bytes]", int, float]


@contextlib.contextmanager
def exec_server(directory: Path, authority: Authority) -> Iterator[Server]:
    """A warm exec server: its process, its port, and the ms from its start to the first Info."""
    write_identity(directory / "identity", authority, POD_NAME)
    for name in ("recipe", "workspace", "home"):
        (directory / name).mkdir()
    port = free_port()
    env = {
        "PYTHONPATH": os.pathsep.join(sys.path[1:]),
        "CLOISTER_POD_UID": POD_UID,
        "CLOISTER_LISTEN": f"127.0.0.1:{port}",
        "CLOISTER_IDENTITY_DIR": str(directory / "identity"),
        "CLOISTER_RECIPE_DIR": str(directory / "recipe"),
        "CLOISTER_STATE_DIR": str(directory / "state"),
        "CLOISTER_WORKSPACE": str(directory / "workspace"),
        "CLOISTER_HOME": str(directory / "home"),
        "CLOISTER_ROOTS": str(directory / "home"),
    }
    with channel(authority, OPERATOR, port, POD_NAME) as operator:
        info = exec_pb2_grpc.RuntimeStub(operator)
        began = time.perf_counter()
        with running([sys.executable, "-m", "cloister_sandbox"], env) as process:
            while True:
                answer = info.Info(exec_pb2.InfoRequest(), timeout=20, wait_for_ready=True)
                if answer.state == exec_pb2.RuntimeInfo.STATE_WARM:
                    break
            yield process, port, (time.perf_counter() - began) * 1000


def claim(authority: Authority, port: int) -> None:
    """Give the pod to the session, as the operator does."""
    pair = authority.issue(x509.DNSName(SESSION_NAME))
    with channel(authority, OPERATOR, port, POD_NAME) as operator:
        exec_pb2_grpc.RuntimeStub(operator).Claim(
            exec_pb2.ClaimRequest(
                session_uid=SESSION_UID,
                session_name="bench",
                pod_uid=POD_UID,
                certificate_pem=pair.certificate,
                private_key_pem=pair.private_key,
            ),
            timeout=10,
        )


def caller(tools: exec_pb2_grpc.ToolsStub) -> Callable[[], exec_pb2.CallEvent]:
    """A function that makes one call and returns its last event."""

    def call() -> exec_pb2.CallEvent:
        request = exec_pb2.CallRequest(request_id=uuid.uuid4().hex, tool="bash")
        request.input.update({"command": ":"})
        last = exec_pb2.CallEvent()
        for event in tools.Call(request, timeout=20, wait_for_ready=True):
            last = event
        return last

    return call


def timed(call: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def compare(directory: Path, calls: int) -> dict[str, object]:
    """The figures of one run."""
    authority = Authority()
    ready = []
    for number in range(STARTS - 1):
        with exec_server(directory / f"start{number}", authority) as (_, _, milliseconds):
            ready.append(milliseconds)
    with exec_server(directory / "exec", authority) as (process, port, milliseconds):
        ready.append(milliseconds)
        idle = resident_mb(process.pid)
        claim(authority, port)
        with channel(authority, f"session:{SESSION_UID}", port, SESSION_NAME) as worker:
            bash = caller(exec_pb2_grpc.ToolsStub(worker))
            answer = bash()
            if answer.result.is_error or answer.result.content[0].text != "(no output)":
                raise RuntimeError(f"the exec server answered {answer}")
            with echo(directory / "echo", authority, answer) as stub:
                bare = caller(stub)
                for _ in range(WARM_UP):
                    bash()
                    bare()
                pairs = [(timed(bash), timed(bare)) for _ in range(calls)]
        after = resident_mb(process.pid)
    bash_ms, echo_ms = zip(*pairs, strict=True)
    figures: dict[str, object] = {"calls": calls, "client": "one synchronous grpc client"}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        of_bash, of_echo = percentile(bash_ms, share), percentile(echo_ms, share)
        figures[f"bash_{name}_ms"] = round(of_bash, 3)
        figures[f"echo_{name}_ms"] = round(of_echo, 3)
        figures[f"bash_ratio_{name}"] = round(of_bash / of_echo, 2)
    figures["ready_ms"] = round(statistics.median(ready), 1)
    figures["rss_idle_mb"] = round(idle, 1)
    figures["rss_after_mb"] = round(after, 1)
    return figures


@contextlib.contextmanager
def echo(
    directory: Path, authority: Authority, answer: exec_pb2.CallEvent
) -> Iterator[exec_pb2_grpc.ToolsStub]:
    """A client of the bare server, which answers with this event."""
    write_identity(directory / "identity", authority, SESSION_NAME)
    (directory / "answer").write_bytes(answer.SerializeToString())
    port = free_port()
    command = [sys.executable, str(ROOT / "bench" / "echo_server.py"), str(port)]
    command += [str(directory / "identity"), str(directory / "answer")]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path[1:]), "GRPC_ENABLE_FORK_SUPPORT": "0"}
    with (
        running(command, paths),
        channel(authority, f"session:{SESSION_UID}", port, SESSION_NAME) as open_channel,
    ):
        grpc.channel_ready_future(open_channel).result(timeout=20)
        yield exec_pb2_grpc.ToolsStub(open_channel)


def main() -> None:
    """Measure, print, save."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else CALLS
    # In memory, as the server's own directory is in a pod.
    with tempfile.TemporaryDirectory(prefix="cloister-bench-", dir="/dev/shm") as directory:
        figures = compare(Path(directory), calls)
    table(
        "exec server: bash `:` next to a bare gRPC echo",
        [(name, str(value)) for name, value in figures.items()],
    )
    path = save("exec", figures)
    print(f"\nwritten to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
