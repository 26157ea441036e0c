"""Many bytes: a program's output, a download, an upload, each next to a bare stream."""

import functools
import itertools
import os
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
from bench.floors import CHUNK

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

BIG_FILE = "bench-big.bin"
FRAME = 512 * 1024
"""Bytes of the client library's upload frames; the floor gets pieces of CHUNK."""
_TIMEOUT = 300
Move = Callable[[grpc.Channel, int], int]


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


def upload(channel: grpc.Channel, size: int, path: str = BIG_FILE, piece: int = FRAME) -> int:
    """Write a file of `size` bytes; returns the size that arrived."""
    start = exec_pb2.UploadFrame(start=exec_pb2.UploadStart(path=path))
    end = exec_pb2.UploadFrame(end=exec_pb2.UploadEnd(size=size))
    whole = exec_pb2.UploadFrame(data=bytes(piece))
    count, rest = divmod(size, piece)
    last = [exec_pb2.UploadFrame(data=bytes(rest))] if rest else []
    stub = exec_pb2_grpc.FilesStub(channel)
    frames = itertools.chain([start], itertools.repeat(whole, count), last, [end])
    return int(stub.Upload(frames, timeout=_TIMEOUT, wait_for_ready=True).size)


def download(channel: grpc.Channel, size: int, path: str = BIG_FILE) -> int:
    """Read the file that `upload` wrote; returns how many bytes came."""
    request = exec_pb2.DownloadRequest(path=path, length=size)
    stub = exec_pb2_grpc.FilesStub(channel)
    return sum(
        len(chunk.data) for chunk in stub.Download(request, timeout=_TIMEOUT, wait_for_ready=True)
    )


def rate(move: Move, channel: grpc.Channel, size: int) -> float:
    """MB (10^6 bytes) per second of one move; raises RuntimeError when bytes are missing."""
    began = time.perf_counter()
    came = move(channel, size)
    took = time.perf_counter() - began
    if came != size:
        raise RuntimeError(f"{came} of {size} bytes came")
    return size / 1e6 / took


def bulk(
    ours: grpc.Channel, floor: grpc.Channel, size: int, rounds: int, folder: str = ""
) -> dict[str, float]:
    """The median rates of both, moved in turn, and their ratios.

    `folder` is where the files go; empty is the workspace.
    """
    path = os.path.join(folder, BIG_FILE)  # noqa: PTH118 - a path in the sandbox
    moves: dict[str, tuple[Move, Move]] = {
        "stream": (stream, stream),
        "upload": (
            functools.partial(upload, path=path),
            functools.partial(upload, piece=CHUNK),
        ),
        "download": (functools.partial(download, path=path), download),
    }
    figures = {}
    for name, (move, bare_move) in moves.items():
        rate(move, ours, size // 8)
        rate(bare_move, floor, size // 8)
        pairs = [(rate(move, ours, size), rate(bare_move, floor, size)) for _ in range(rounds)]
        mine, bare = (statistics.median(each) for each in zip(*pairs, strict=True))
        figures[f"{name}_mb_s"] = round(mine, 1)
        figures[f"{name}_floor_mb_s"] = round(bare, 1)
        figures[f"{name}_ratio"] = round(mine / bare, 2)
    return figures


def disk(ours: grpc.Channel, folder: Path, size: int, rounds: int) -> dict[str, float]:
    """Uploads to the workspace, which is on a disk, beside writing the same bytes there."""
    pairs = [(rate(upload, ours, size), write(folder / BIG_FILE, size)) for _ in range(rounds)]
    mine, bare = (statistics.median(each) for each in zip(*pairs, strict=True))
    return {
        "upload_disk_mb_s": round(mine, 1),
        "write_disk_mb_s": round(bare, 1),
        "upload_disk_ratio": round(mine / bare, 2),
    }


def write(path: Path, size: int) -> float:
    """MB per second of a plain loop that writes a new file, which takes the old one's place."""
    data = bytes(FRAME)
    began = time.perf_counter()
    new = path.with_suffix(".new")
    with new.open("wb", buffering=0) as file:
        for _ in range(size // FRAME):
            file.write(data)
    new.replace(path)
    return size / 1e6 / (time.perf_counter() - began)


def pipe(size: int) -> float:
    """MB per second that a bare pipe gives from the same program to this one."""
    began = time.perf_counter()
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as made:
        if made.stdout is None:
            raise RuntimeError("the program has no output")
        while os.read(made.stdout.fileno(), CHUNK):
            pass
    return size / 1e6 / (time.perf_counter() - began)
