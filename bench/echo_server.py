"""The yardstick of bench_exec: a bare grpc.aio server of the same shape as Tools.Call.

Same request and response messages, same streaming type, same mutual TLS, nothing behind it:
each request is answered at once with one ready-made event.

    python bench/echo_server.py PORT IDENTITY_DIR RESPONSE_FILE
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from cloister_api.exec.v1 import exec_pb2


def handler(answer: exec_pb2.CallEvent) -> grpc.GenericRpcHandler:
    """Tools.Call that answers every request with the same event."""

    async def call(request: exec_pb2.CallRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG001
        yield answer

    method = grpc.unary_stream_rpc_method_handler(
        call,
        request_deserializer=exec_pb2.CallRequest.FromString,
        response_serializer=exec_pb2.CallEvent.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("cloister.exec.v1.Tools", {"Call": method})


async def serve(port: int, identity: Path, answer: bytes) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(exec_pb2.CallEvent.FromString(answer)),))
    pair = ((identity / "tls.key").read_bytes(), (identity / "tls.crt").read_bytes())
    credentials = grpc.ssl_server_credentials(
        [pair], (identity / "ca.crt").read_bytes(), require_client_auth=True
    )
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]).read_bytes()))
