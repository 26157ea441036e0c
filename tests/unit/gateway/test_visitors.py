"""Who asks a gateway for its health and metrics."""

import asyncio
import socket
from pathlib import Path

from cloister_api.visitors import MOST
from cloister_gateway.front import Front
from cloister_gateway.health import Health
from cloister_gateway.service import Holder
from cloister_gateway.store import Store


async def ask(port: int, path: str, method: str = "GET") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_who_takes_all_connections_is_not_heard_instead_of_the_kubelet(
    tmp_path: Path,
) -> None:
    front = Front(tmp_path / "nobody")
    health = Health(Holder(Store(tmp_path), front), front)
    port = await health.start("127.0.0.1", 0)
    held = []
    for _ in range(MOST + 20):
        made = socket.socket()
        made.bind(("127.0.0.2", 0))
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        held.append(made)
    assert (await ask(port, "/healthz")).startswith(b"HTTP/1.1 200 ")
    for each in held[:20]:
        try:
            assert await asyncio.get_running_loop().sock_recv(each, 1) == b""
        except ConnectionResetError:
            continue
    for each in held:
        each.close()
    assert b"nothing was looked at yet" in await ask(port, "/readyz")
    assert b"cloister_gateway_sources" in await ask(port, "/metrics")
    for method in ("GET", "POST"):
        assert (await ask(port, "/other", method)).startswith(b"HTTP/1.1 404 ")
    assert (await ask(port, "/metrics", "POST")).startswith(b"HTTP/1.1 405 ")
    await health.stop()
