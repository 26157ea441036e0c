"""Stands in for the exec servers of pods that kwok only says are running; bench_scale.py runs it.

A real gRPC server with mutual TLS behind every fake pod's address. What it is not: it runs no
tools, one certificate (for every name below sandbox.cloister.dev, signed by the operator's CA)
serves all pods, and Probe answers that nothing can be reached, which nobody tried. It does keep the
rule that a pod belongs to one session: a second session's Claim is refused, and counted.

    python bench/scale_pods.py FOLDER       (with ca.crt, tls.crt and tls.key)

Ends on SIGTERM, and prints how many claims there were.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

PORT = 7443


class Pods(exec_pb2_grpc.RuntimeServicer):
    """The Runtime service of all pods."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}
        """Session UID by pod UID."""
        self.refused = 0

    async def Info(  # noqa: N802
        self,
        request: exec_pb2.InfoRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> exec_pb2.RuntimeInfo:
        return exec_pb2.RuntimeInfo(
            version="bench",
            api_generation=1,
            boot_id="bench",
            state=exec_pb2.RuntimeInfo.STATE_WARM,
            uid_map="0 100000 65536",
        )

    async def Probe(  # noqa: N802
        self,
        request: exec_pb2.ProbeRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> exec_pb2.ProbeResponse:
        return exec_pb2.ProbeResponse()

    async def Claim(  # noqa: N802
        self, request: exec_pb2.ClaimRequest, context: Any
    ) -> exec_pb2.ClaimResponse:
        owner = self.owners.setdefault(request.pod_uid, request.session_uid)
        if owner != request.session_uid:
            self.refused += 1
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another session's")
        return exec_pb2.ClaimResponse(boot_id="bench")

    async def Activity(  # noqa: N802
        self,
        request: exec_pb2.ActivityRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> exec_pb2.ActivityResponse:
        return exec_pb2.ActivityResponse(running_calls=1)

    async def PackageSources(  # noqa: N802
        self,
        request: exec_pb2.PackageSourcesRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> exec_pb2.PackageSourcesResponse:
        return exec_pb2.PackageSourcesResponse()

    async def Prepare(  # noqa: N802
        self,
        request: exec_pb2.PrepareRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> exec_pb2.PrepareResponse:
        return exec_pb2.PrepareResponse()

    async def Trust(  # noqa: N802
        self,
        request: exec_pb2.TrustRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> exec_pb2.TrustResponse:
        return exec_pb2.TrustResponse()

    async def Drain(  # noqa: N802
        self,
        request: exec_pb2.DrainRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> exec_pb2.DrainResponse:
        return exec_pb2.DrainResponse()


async def serve(folder: Path) -> None:
    """Answer for all pods until SIGTERM."""
    pods, stop = Pods(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            # As the exec server: the operator's channels look now and then whether it is there.
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ]
    )
    exec_pb2_grpc.add_RuntimeServicer_to_server(pods, server)
    pair = (folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes()
    credentials = grpc.ssl_server_credentials(
        [pair], (folder / "ca.crt").read_bytes(), require_client_auth=True
    )
    server.add_secure_port(f"0.0.0.0:{PORT}", credentials)
    await server.start()
    print("ready", flush=True)
    await stop.wait()
    await server.stop(0)
    print(json.dumps({"claims": len(pods.owners), "refused": pods.refused}), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
