"""Small calls: each to the exec server in turn with the same one to the bare server."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import grpc
from bench.results import percentile

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

SMALL_FILE = "bench-4k.txt"
SMALL_CONTENT = b"".join(b"line %010d of a small file......\n" % number for number in range(128))
INPUTS: dict[str, dict[str, str]] = {"bash": {"command": ":"}, "read": {"file_path": SMALL_FILE}}
_TIMEOUT = 60


def call(tools: exec_pb2_grpc.ToolsStub, tool: str, given: Mapping[str, str]) -> exec_pb2.CallEvent:
    """One call's last event."""
    request = exec_pb2.CallRequest(request_id=uuid.uuid4().hex, tool=tool)
    request.input.update(given)
    last = exec_pb2.CallEvent()
    for event in tools.Call(request, timeout=_TIMEOUT, wait_for_ready=True):
        last = event
    return last


def bash(channel: grpc.Channel, command: str) -> str:
    """The text that a command answers with; raises RuntimeError when it fails."""
    result = call(exec_pb2_grpc.ToolsStub(channel), "bash", {"command": command}).result
    text = result.content[0].text if result.content else ""
    if result.is_error:
        raise RuntimeError(f"the command failed: {text}")
    return text


def put(channel: grpc.Channel, path: str, content: bytes) -> None:
    """Write a file through the exec server."""
    frames = [
        exec_pb2.UploadFrame(start=exec_pb2.UploadStart(path=path)),
        exec_pb2.UploadFrame(data=content),
        exec_pb2.UploadFrame(end=exec_pb2.UploadEnd(size=len(content))),
    ]
    exec_pb2_grpc.FilesStub(channel).Upload(iter(frames), timeout=_TIMEOUT)


def answers(channel: grpc.Channel, small_file: str) -> dict[str, bytes]:
    """What the exec server answers to the calls that are measured, for the bare server to repeat.

    Raises RuntimeError when it is not what it should be.
    """
    put(channel, small_file, SMALL_CONTENT)
    tools = exec_pb2_grpc.ToolsStub(channel)
    found = {tool: call(tools, tool, given) for tool, given in INPUTS.items()}
    for tool, said in (("bash", "(no output)"), ("read", "line 0000000127 of a small file......")):
        result = found[tool].result
        if result.is_error or said not in result.content[0].text:
            raise RuntimeError(f"the exec server answered {result} to {tool}")
    return {tool: event.SerializeToString() for tool, event in found.items()}


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def in_turn(
    ours: grpc.Channel,
    floor: grpc.Channel,
    tool: str,
    given: Mapping[str, str],
    count: int,
    warm_up: int,
) -> tuple[list[float], list[float]]:
    """Milliseconds of so many calls to either, one by one in turn."""
    stubs = [exec_pb2_grpc.ToolsStub(each) for each in (ours, floor)]
    took: tuple[list[float], list[float]] = ([], [])
    for number in range(-warm_up, count):
        for stub, found in zip(stubs, took, strict=True):
            milliseconds = timed(lambda stub=stub: call(stub, tool, given))  # type: ignore[misc]
            if number >= 0:
                found.append(milliseconds)
    return took


def compared(name: str, ours: Sequence[float], floor: Sequence[float]) -> dict[str, float]:
    """Medians and 99th percentiles of both, and their ratios."""
    figures = {}
    for rank, share in (("p50", 0.5), ("p99", 0.99)):
        mine, bare = percentile(ours, share), percentile(floor, share)
        figures[f"{name}_{rank}_ms"] = round(mine, 3)
        figures[f"{name}_floor_{rank}_ms"] = round(bare, 3)
        figures[f"{name}_ratio_{rank}"] = round(mine / bare, 2)
    return figures


def small_calls(
    ours: grpc.Channel, floor: grpc.Channel, count: int, warm_up: int
) -> dict[str, float]:
    """The figures of bash `:`, of a command that prints, and of a read of 4 KiB."""
    figures = {}
    for name, tool, given in (
        ("bash", "bash", INPUTS["bash"]),
        ("bash_print", "bash", {"command": "echo x"}),
        ("read4k", "read", INPUTS["read"]),
    ):
        figures.update(compared(name, *in_turn(ours, floor, tool, given, count, warm_up)))
    return figures
