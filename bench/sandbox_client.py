"""The client of a sandbox: calls its exec server, and floors that run beside it in the sandbox.

    python bench/sandbox_client.py < REQUEST

REQUEST is a line of JSON: `worker`, the session's worker as a peer, and `sizes`. It must run where
every port of the pod can be reached, which NetworkPolicies leave to the pod's node. The bare server
runs in the sandbox itself, so that it pays for the same isolation. Prints the figures as JSON.
"""

import contextlib
import json
import statistics
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import grpc
from bench.bulk import bulk
from bench.burst import XARGS, burst
from bench.calls import SMALL_FILE, answers, bash, put, small_calls
from bench.certificates import Authority, identity
from bench.local_server import (
    OPERATOR,
    POD_NAME,
    ROOT,
    SESSION_NAME,
    WORKER,
    settings,
    wait_warm,
)
from bench.peers import Peer, peer

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

PYTHON = "/opt/cloister/bin/python"
FLOOR_PORT, START_PORT = 7500, 7501


@dataclass(frozen=True)
class Sizes:
    """How much is measured in each sandbox."""

    starts: int = 5
    calls: int = 500
    warm_up: int = 50
    bulk_bytes: int = 64 * 1024 * 1024
    rounds: int = 3


@contextlib.contextmanager
def program(channel: grpc.Channel, argv: list[str], env: Mapping[str, str]) -> Iterator[None]:
    """A program of the sandbox that goes on until the context ends."""
    processes = exec_pb2_grpc.ProcessesStub(channel)
    request = exec_pb2.StartRequest(
        process_id=uuid.uuid4().hex, argv=argv, env=env, detach=True, cwd="/workspace"
    )
    last = list(processes.Start(request, timeout=30))[-1]
    if not last.HasField("detached"):
        raise RuntimeError(f"{argv[0]} did not start: {last}")
    end = exec_pb2.SignalRequest(
        process_id=request.process_id, signal=9, scope=exec_pb2.SignalRequest.SCOPE_TREE
    )
    try:
        yield
    finally:
        try:
            processes.Signal(end, timeout=30)
        except grpc.RpcError:
            look = exec_pb2.AttachRequest(process_id=request.process_id, follow=True)
            events = list(processes.Attach(look, timeout=30))
            said = b"".join(event.output.data for event in events).decode(errors="replace")
            raise RuntimeError(f"{argv[0]} ended with {events[-1]}:\n{said}") from None


@contextlib.contextmanager
def floor_in_pod(
    channel: grpc.Channel, host: str, authority: Authority, answered: Mapping[str, bytes]
) -> Iterator[Peer]:
    """The bare server in the sandbox."""
    files = {f"{tool}.answer": event for tool, event in answered.items()}
    for name, content in {**identity(authority, SESSION_NAME), **files}.items():
        put(channel, f"/workspace/floor/{name}", content)
    source = (ROOT / "bench" / "floors.py").read_text()
    argv = [PYTHON, "-I", "-c", source, f"0.0.0.0:{FLOOR_PORT}", "/workspace/floor"]
    with program(channel, argv, {"GRPC_ENABLE_FORK_SUPPORT": "0"}):
        yield peer(authority, WORKER, f"{host}:{FLOOR_PORT}", SESSION_NAME)


def ready_in_pod(channel: grpc.Channel, host: str, authority: Authority, count: int) -> float:
    """The median ms from the start of a second exec server in the sandbox to its first answer."""
    directory = "/tmp/start"
    for name, content in identity(authority, POD_NAME).items():
        put(channel, f"{directory}/identity/{name}", content)
    bash(channel, f"mkdir -p {directory}/recipe {directory}/home {directory}/workspace")
    found = []
    for number in range(count):
        port = START_PORT + number
        env = settings(directory, f"{directory}/workspace", f"0.0.0.0:{port}")
        operator = peer(authority, OPERATOR, f"{host}:{port}", POD_NAME)
        began = time.perf_counter()
        with program(channel, [PYTHON, "-I", "-m", "cloister_sandbox"], env):
            wait_warm(operator)
            found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


def in_sandbox(ours_peer: Peer, sizes: Sizes) -> dict[str, float]:
    """The figures of one sandbox."""
    authority = Authority()
    host = ours_peer.address.rpartition(":")[0]

    def resident() -> float:
        line = bash(ours, "grep VmRSS: /proc/1/status")
        return round(int(line.split()[1]) * 1024 / 1e6, 1)

    def xargs() -> float:
        return int(bash(ours, XARGS)) / 1000

    with ours_peer.channel() as ours:
        figures = {"rss_idle_mb": resident()}
        answered = answers(ours, SMALL_FILE)
        figures["ready_ms"] = round(ready_in_pod(ours, host, authority, sizes.starts), 1)
        with floor_in_pod(ours, host, authority, answered) as bare, bare.channel() as floor:
            figures.update(small_calls(ours, floor, sizes.calls, sizes.warm_up))
            figures.update(bulk(ours, floor, sizes.bulk_bytes, sizes.rounds))
        figures.update(burst(ours_peer, xargs, sizes.rounds))
        figures["rss_after_mb"] = resident()
    return figures


def main() -> None:
    """Measure what the input says."""
    request = json.loads(sys.stdin.readline())
    figures = in_sandbox(Peer(**request["worker"]), Sizes(**request["sizes"]))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
