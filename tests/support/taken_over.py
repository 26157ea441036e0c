"""A sandbox that was taken over: the session's certificate, and the answers that a test wants."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from support.fake_sessions import FakeSessions
from support.sandbox_server import SESSION_NAME, Sandbox


@contextlib.contextmanager
def taken_over(
    server: Sandbox,
    sessions: FakeSessions,
    add: Callable[[grpc.Server], None],
    options: list[tuple[str, int]] | None = None,
) -> Iterator[None]:
    """Lead sessions to a server in place of the real one; `add` gives it what it answers."""
    pair = server.authority.issue(dns=SESSION_NAME)
    running = grpc.server(ThreadPoolExecutor(8), options=options)
    add(running)
    port = running.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(pair.private_key, pair.certificate)])
    )
    running.start()
    sessions.endpoint = f"127.0.0.1:{port}"
    yield
    running.stop(None).wait()
