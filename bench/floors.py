"""The floors of bench_exec: a bare grpc.aio server of the same shapes as the exec server.

Same request and response messages, same kinds of streams, same mutual TLS, nothing behind them:
a call is answered at once with a ready-made event, a program's output and a download are one
64 KiB piece sent again and again, an upload is thrown away.

    python bench/floors.py HOST:PORT DIRECTORY

DIRECTORY holds tls.crt, tls.key, ca.crt, and for each tool the event that answers its calls, in a
file NAME.answer. The file needs nothing of this folder: the benchmark also runs its text in pods.
Under gVisor the connections need the exec server's own care, or 40 ms would be the floor.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.nodelay import Connections

CHUNK = 64 * 1024
_PIECE = bytes(CHUNK)


def lengths(total: int) -> list[int]:
    """The sizes of the pieces of so many bytes."""
    whole, rest = divmod(total, CHUNK)
    return [CHUNK] * whole + ([rest] if rest else [])


def answering(directory: Path) -> Any:
    """Tools.Call: what the exec server once answered to the same call."""
    answers = {
        path.stem: exec_pb2.CallEvent.FromString(path.read_bytes())
        for path in directory.glob("*.answer")
    }

    connections = Connections()

    async def call(request: exec_pb2.CallRequest, context: Any) -> AsyncIterator[Any]:
        if connections.needed:
            connections.look(context.peer())
        yield answers[request.tool]

    return call


async def start(request: exec_pb2.StartRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG001
    """Processes.Start: the output of a `head -c COUNT /dev/zero` that does not run."""
    offset = 0
    for size in lengths(int(request.argv[2])):
        data = _PIECE if size == CHUNK else _PIECE[:size]
        yield exec_pb2.OutputEvent(output=exec_pb2.Output(offset=offset, data=data))
        offset += size
    yield exec_pb2.OutputEvent(exited=exec_pb2.ExitInfo(code=0))


async def download(request: exec_pb2.DownloadRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG001
    """Files.Download: a source."""
    offset = 0
    for size in lengths(request.length):
        data = _PIECE if size == CHUNK else _PIECE[:size]
        yield exec_pb2.Chunk(offset=offset, data=data)
        offset += size


async def upload(request: AsyncIterator[exec_pb2.UploadFrame], context: Any) -> Any:  # noqa: ARG001
    """Files.Upload: a sink."""
    size = 0
    async for frame in request:
        size += len(frame.data)
    return exec_pb2.Entry(size=size)


async def info(request: exec_pb2.InfoRequest, context: Any) -> Any:  # noqa: ARG001
    """Runtime.Info: the smallest call."""
    return exec_pb2.RuntimeInfo(version="floor", api_generation=1)


def handlers(directory: Path) -> list[grpc.GenericRpcHandler]:
    """All of them, under the names of the exec server's methods."""
    pb = exec_pb2
    methods: dict[tuple[str, str], Any] = {
        ("Tools", "Call"): grpc.unary_stream_rpc_method_handler(
            answering(directory), pb.CallRequest.FromString, pb.CallEvent.SerializeToString
        ),
        ("Processes", "Start"): grpc.unary_stream_rpc_method_handler(
            start, pb.StartRequest.FromString, pb.OutputEvent.SerializeToString
        ),
        ("Files", "Download"): grpc.unary_stream_rpc_method_handler(
            download, pb.DownloadRequest.FromString, pb.Chunk.SerializeToString
        ),
        ("Files", "Upload"): grpc.stream_unary_rpc_method_handler(
            upload, pb.UploadFrame.FromString, pb.Entry.SerializeToString
        ),
        ("Runtime", "Info"): grpc.unary_unary_rpc_method_handler(
            info, pb.InfoRequest.FromString, pb.RuntimeInfo.SerializeToString
        ),
    }
    return [
        grpc.method_handlers_generic_handler(f"cloister.exec.v1.{service}", {method: handler})
        for (service, method), handler in methods.items()
    ]


async def serve(address: str, directory: Path) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(tuple(handlers(directory)))
    pair = ((directory / "tls.key").read_bytes(), (directory / "tls.crt").read_bytes())
    credentials = grpc.ssl_server_credentials(
        [pair], (directory / "ca.crt").read_bytes(), require_client_auth=True
    )
    server.add_secure_port(address, credentials)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
