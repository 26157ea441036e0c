"""Many bytes: a program's output, a download, an upload, each next to a bare stream."""

import itertools
import os
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable

import grpc
from bench.floors import CHUNK, lengths

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

BIG_FILE = "bench-big.bin"
_TIMEOUT = 300
Move = Callable[[grpc.Channel, int], int]
_DATA = exec_pb2.UploadFrame(data=bytes(CHUNK))


def stream(channel: grpc.Channel, size: int) -> int:
    """Run a program that prints `size` bytes; returns how many came, which are fewer with gaps."""
    request = exec_pb2.StartRequest(
        process_id=uuid.uuid4().hex, argv=["head", "-c", str(size), "/dev/zero"]
    )
    came = 0
    last = exec_pb2.OutputEvent()
    stub = exec_pb2_grpc.ProcessesStub(channel)
    for event in stub.Start(request, timeout=_TIMEOUT, wait_for_ready=True):
        came += len(event.output.data)
        last = event
    if not last.HasField("exited") or last.exited.code:
        raise RuntimeError(f"the program ended with {last}")
    return came


def upload(channel: grpc.Channel, size: int) -> int:
    """Write a file of `size` bytes in pieces of 64 KiB; returns the size that arrived."""
    start = exec_pb2.UploadFrame(start=exec_pb2.UploadStart(path=BIG_FILE))
    end = exec_pb2.UploadFrame(end=exec_pb2.UploadEnd(size=size))
    pieces = (
        _DATA if each == CHUNK else exec_pb2.UploadFrame(data=bytes(each)) for each in lengths(size)
    )
    stub = exec_pb2_grpc.FilesStub(channel)
    frames = itertools.chain([start], pieces, [end])
    return int(stub.Upload(frames, timeout=_TIMEOUT, wait_for_ready=True).size)


def download(channel: grpc.Channel, size: int) -> int:
    """Read the file that `upload` wrote; returns how many bytes came."""
    request = exec_pb2.DownloadRequest(path=BIG_FILE, length=size)
    stub = exec_pb2_grpc.FilesStub(channel)
    return sum(
        len(chunk.data) for chunk in stub.Download(request, timeout=_TIMEOUT, wait_for_ready=True)
    )


MOVES: dict[str, Move] = {"stream": stream, "upload": upload, "download": download}


def rate(move: Move, channel: grpc.Channel, size: int) -> float:
    """MB (10^6 bytes) per second of one move; raises RuntimeError when bytes are missing."""
    began = time.perf_counter()
    came = move(channel, size)
    took = time.perf_counter() - began
    if came != size:
        raise RuntimeError(f"{came} of {size} bytes came")
    return size / 1e6 / took


def bulk(ours: grpc.Channel, floor: grpc.Channel, size: int, rounds: int) -> dict[str, float]:
    """The median rates of both, moved in turn, and their ratios."""
    figures = {}
    for name, move in MOVES.items():
        for channel in (ours, floor):
            rate(move, channel, size // 8)
        pairs = [(rate(move, ours, size), rate(move, floor, size)) for _ in range(rounds)]
        mine, bare = (statistics.median(each) for each in zip(*pairs, strict=True))
        figures[f"{name}_mb_s"] = round(mine, 1)
        figures[f"{name}_floor_mb_s"] = round(bare, 1)
        figures[f"{name}_ratio"] = round(mine / bare, 2)
    return figures


def pipe(size: int) -> float:
    """MB per second that a bare pipe gives from the same program to this one."""
    began = time.perf_counter()
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as made:
        if made.stdout is None:
            raise RuntimeError("the program has no output")
        while os.read(made.stdout.fileno(), CHUNK):
            pass
    return size / 1e6 / (time.perf_counter() - began)
