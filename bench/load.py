"""Bulk transfers without end, in a process of their own: what control calls have to live beside.

    python bench/load.py SIZE < PEER

PEER is a peer as JSON. Two connections move files of SIZE bytes, one up, the other down. Prints the
line `moving` when both have begun, and when its input ends the number of bytes moved. The file that
is read must be there.
"""

import contextlib
import json
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import grpc
from bench.bulk import Move, download, upload
from bench.calls import call, timed
from bench.local_server import ROOT, cpu_seconds, running
from bench.peers import Peer
from bench.results import percentile

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

LOAD_BYTES = 64 * 1024 * 1024


def main() -> None:
    """Move until the input ends."""
    size = int(sys.argv[1])
    peer = Peer(**json.loads(sys.stdin.readline()))
    stop = threading.Event()
    begun = threading.Barrier(3)
    moved: list[int] = []

    def work(move: Move) -> None:
        with peer.channel() as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            begun.wait()
            while not stop.is_set():
                moved.append(move(channel, size))

    threads = [threading.Thread(target=work, args=[move]) for move in (upload, download)]
    for each in threads:
        each.start()
    begun.wait()
    print("moving", flush=True)
    sys.stdin.read()
    stop.set()
    for each in threads:
        each.join()
    print(sum(moved))


@dataclass
class Load:
    """What ran beside the measured calls."""

    mb_s: float = 0.0
    server_cores: float = 0.0
    client_cores: float = 0.0
    """Processor time per second, of the server and of the process that moves."""


@contextlib.contextmanager
def moving(peer: Peer, server: int) -> Iterator[Load]:
    """Bulk transfers to a server (its pid) while the context lasts; filled in at its end."""
    load = Load()
    command = [sys.executable, str(ROOT / "bench" / "load.py"), str(LOAD_BYTES)]
    with running(command, {}, pipes=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        process.stdin.write(json.dumps(asdict(peer)).encode() + b"\n")
        process.stdin.flush()
        if process.stdout.readline() != b"moving\n":
            raise RuntimeError("the bulk transfers did not begin")
        began, used = time.perf_counter(), (cpu_seconds(server), cpu_seconds(process.pid))
        yield load
        took = time.perf_counter() - began
        load.server_cores = (cpu_seconds(server) - used[0]) / took
        load.client_cores = (cpu_seconds(process.pid) - used[1]) / took
        process.stdin.close()
        load.mb_s = int(process.stdout.read()) / 1e6 / (time.perf_counter() - began)


def control_calls(channel: grpc.Channel, count: int) -> dict[str, list[float]]:
    """Milliseconds of so many small calls of each kind, in turn."""
    info, tools = exec_pb2_grpc.RuntimeStub(channel), exec_pb2_grpc.ToolsStub(channel)
    took: dict[str, list[float]] = {"info": [], "bash": []}
    for _ in range(count):
        took["info"].append(timed(lambda: info.Info(exec_pb2.InfoRequest(), timeout=60)))
        took["bash"].append(timed(lambda: call(tools, "bash", {"command": ":"})))
    return took


def under_load(name: str, peer: Peer, server: int, rounds: int, count: int) -> dict[str, float]:
    """Control calls on one connection: idle and beside bulk transfers on two others, in turn.

    The 99th percentiles are of the calls of all rounds. The ratio is that of the kind of call that
    suffers most.
    """
    idle: dict[str, list[float]] = {"info": [], "bash": []}
    busy: dict[str, list[float]] = {"info": [], "bash": []}
    loads = []
    with peer.channel() as channel:
        upload(channel, LOAD_BYTES)
        control_calls(channel, count // 4)
        for _ in range(rounds):
            for kind, found in control_calls(channel, count).items():
                idle[kind] += found
            with moving(peer, server) as load:
                for kind, found in control_calls(channel, count).items():
                    busy[kind] += found
            loads.append(load)
    figures = {}
    for kind in idle:
        before, beside = percentile(idle[kind], 0.99), percentile(busy[kind], 0.99)
        figures[f"{name}_{kind}_idle_p99_ms"] = round(before, 3)
        figures[f"{name}_{kind}_p99_ms"] = round(beside, 3)
        figures[f"{name}_{kind}_ratio_p99"] = round(beside / before, 2)
    figures[f"{name}_ratio_p99"] = max(figures[f"{name}_{kind}_ratio_p99"] for kind in idle)
    for field in ("mb_s", "server_cores", "client_cores"):
        mean = statistics.mean(getattr(load, field) for load in loads)
        figures[f"{name}_load_{field}"] = round(mean, 2)
    return figures


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started us ends us
    main()
