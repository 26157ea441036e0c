"""A sandbox that was taken over: the session's certificate, and the answers that a test wants."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.services.runtime import CAPABILITIES
from support.fake_sessions import FakeSessions
from support.sandbox_server import SESSION_NAME, Sandbox


@contextlib.contextmanager
def taken_over(
    server: Sandbox,
    sessions: FakeSessions,
    add: Callable[[grpc.Server], None],
    options: list[tuple[str, int]] | None = None,
) -> Iterator[None]:
    """Lead sessions to a server in place of the real one; `add` gives it what it answers.

    What it has is what a real one has, unless `add` brings an answer to that too.
    """
    pair = server.authority.issue(dns=SESSION_NAME)
    running = grpc.server(ThreadPoolExecutor(8), options=options)
    add(running)
    running.add_generic_rpc_handlers((_says_what_it_has(),))
    port = running.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(pair.private_key, pair.certificate)])
    )
    running.start()
    sessions.endpoint = f"127.0.0.1:{port}"
    yield
    running.stop(None).wait()


def _says_what_it_has() -> grpc.GenericRpcHandler:
    info = exec_pb2.RuntimeInfo(version="0.0.1", boot_id="b", capabilities=CAPABILITIES)
    handler = grpc.unary_unary_rpc_method_handler(
        lambda *_: info,
        request_deserializer=exec_pb2.InfoRequest.FromString,
        response_serializer=exec_pb2.RuntimeInfo.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("cloister.exec.v1.Runtime", {"Info": handler})
