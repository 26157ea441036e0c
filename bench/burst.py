"""A hundred commands at once, next to the same hundred run by xargs on the same machine."""

import asyncio
import statistics
import time
import uuid
from collections.abc import Callable

import grpc
from bench.peers import Peer

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

COUNT = 100
CONTEXTS = 50
"""Shells of the calls of `bash`, two calls in each; a sandbox has at most 64."""
COMMAND = ["bash", "-c", ":"]
_TIMEOUT = 60
XARGS = (
    "began=$EPOCHREALTIME; "
    f"seq {COUNT} | xargs -P {COUNT} -n 1 bash -c :; "
    "ended=$EPOCHREALTIME; echo $((${ended/./} - ${began/./}))"
)
"""Prints microseconds."""


async def _program(channel: grpc.aio.Channel) -> None:
    request = exec_pb2.StartRequest(process_id=uuid.uuid4().hex, argv=COMMAND)
    last = exec_pb2.OutputEvent()
    async for event in exec_pb2_grpc.ProcessesStub(channel).Start(request, timeout=_TIMEOUT):
        last = event
    if not last.HasField("exited") or last.exited.code:
        raise RuntimeError(f"the program ended with {last}")


async def _call(channel: grpc.aio.Channel, context: str) -> None:
    request = exec_pb2.CallRequest(request_id=uuid.uuid4().hex, tool="bash", context_id=context)
    request.input.update({"command": ":"})
    last = exec_pb2.CallEvent()
    async for event in exec_pb2_grpc.ToolsStub(channel).Call(request, timeout=_TIMEOUT):
        last = event
    if not last.HasField("result") or last.result.is_error:
        raise RuntimeError(f"the call ended with {last}")


async def _programs(channel: grpc.aio.Channel) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(_program(channel) for _ in range(COUNT)))
    return (time.perf_counter() - began) * 1000


async def _shells(channel: grpc.aio.Channel) -> tuple[float, float]:
    """Milliseconds of the calls in new shells, and of the same again."""
    contexts = [f"burst-{number % CONTEXTS}" for number in range(COUNT)]
    took = []
    for _ in range(2):
        began = time.perf_counter()
        await asyncio.gather(*(_call(channel, context) for context in contexts))
        took.append((time.perf_counter() - began) * 1000)
    stub = exec_pb2_grpc.ToolsStub(channel)
    for context in set(contexts):
        await stub.CloseContext(exec_pb2.CloseContextRequest(context_id=context), timeout=_TIMEOUT)
    return took[0], took[1]


async def _burst(peer: Peer, xargs: Callable[[], float], rounds: int) -> dict[str, float]:
    programs, local, new, warm = [], [], [], []
    async with peer.aio_channel() as channel:
        await _program(channel)
        await asyncio.to_thread(xargs)
        for _ in range(rounds):
            programs.append(await _programs(channel))
            local.append(await asyncio.to_thread(xargs))
        for _ in range(max(1, rounds // 3)):
            first, again = await _shells(channel)
            new.append(first)
            warm.append(again)
    ours, theirs = statistics.median(programs), statistics.median(local)
    return {
        "burst100_ms": round(ours, 1),
        "burst100_xargs_ms": round(theirs, 1),
        "burst100_ratio": round(ours / theirs, 2),
        "burst100_new_shells_ms": round(statistics.median(new), 1),
        "burst100_warm_shells_ms": round(statistics.median(warm), 1),
    }


def burst(peer: Peer, xargs: Callable[[], float], rounds: int) -> dict[str, float]:
    """The figures; `xargs` runs the script XARGS where the server runs and returns milliseconds."""
    return asyncio.run(_burst(peer, xargs, rounds))
