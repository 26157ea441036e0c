"""Metrics and health."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Metric

from cloister_api.pages import METRICS_SECONDS
from cloister_api.visitors import MOST, Visitors
from cloister_operator import metrics
from cloister_operator.http import HttpServer


class Health:
    """A HealthState that says what a test wants."""

    def __init__(self) -> None:
        self.stuck: str | None = None
        self.missing: str | None = None

    def live(self) -> str | None:
        return self.stuck

    def ready(self) -> str | None:
        return self.missing


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def base(health: Health) -> AsyncIterator[str]:
    server = HttpServer(health)
    port = await server.start("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}"
    await server.stop()


async def fetch(url: str, method: str = "GET") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.request(method, url) as response:
        return response.status, await response.text()


async def test_health_answers_a_sentence(base: str, health: Health) -> None:
    assert await fetch(f"{base}/healthz") == (200, "ok\n")
    assert await fetch(f"{base}/readyz") == (200, "ok\n")
    health.missing = "The Environments have not been listed yet."
    assert await fetch(f"{base}/readyz") == (503, "The Environments have not been listed yet.\n")
    assert await fetch(f"{base}/healthz") == (200, "ok\n")
    health.stuck = "The work queue has not moved for 60 s."
    assert await fetch(f"{base}/healthz") == (503, "The work queue has not moved for 60 s.\n")


async def test_who_asks_for_metrics_without_end_keeps_nobody_waiting(health: Health) -> None:
    now = 100.0
    written: list[float] = []

    class Registry(CollectorRegistry):
        def collect(self) -> Iterator[Metric]:
            written.append(now)
            yield from ()

    server = HttpServer(health, Registry(), lambda: now)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}/metrics"
    for _ in range(5):
        assert (await fetch(url))[0] == 200
    now += METRICS_SECONDS
    await fetch(url)
    assert written == [100.0, 101.0]
    await server.stop()


async def test_metrics_are_served(base: str) -> None:
    metrics.SESSIONS.labels("ns", "served", "Running").set(3)
    metrics.API_WRITE_SECONDS.labels(verb="patch", resource="pods").observe(0.003)
    status, text = await fetch(f"{base}/metrics")
    assert status == 200
    assert 'cloister_sessions{environment="served",namespace="ns",phase="Running"} 3.0' in text
    assert 'cloister_api_write_seconds_count{resource="pods",verb="patch"} ' in text
    assert "process_resident_memory_bytes" in text
    metrics.forget_environment("ns", "served")


async def test_the_series_of_a_deleted_environment_go(base: str) -> None:
    for name in ("gone", "kept"):
        for state in ("warm", "claimed"):
            metrics.POOL_PODS.labels(namespace="ns", environment=name, state=state).set(1)
    metrics.forget_environment("ns", "gone")
    _, text = await fetch(f"{base}/metrics")
    assert 'environment="gone"' not in text
    assert text.count('environment="kept"') == 2
    metrics.forget_environment("ns", "kept")
    metrics.forget_environment("ns", "never known")


async def test_nothing_else_is_served(base: str) -> None:
    for method in ("GET", "POST"):
        assert (await fetch(f"{base}/", method))[0] == 404
    assert (await fetch(f"{base}/metrics", "POST"))[0] == 405


async def test_the_lag_of_the_loop_is_measured(base: str) -> None:
    async def observed() -> float:
        _, text = await fetch(f"{base}/metrics")
        line = next(
            each
            for each in text.splitlines()
            if each.startswith("cloister_event_loop_lag_seconds_count")
        )
        return float(line.split()[1])

    before = await observed()
    while await observed() == before:
        pass


async def hold(port: int, source: str, says: bytes = b"") -> socket.socket:
    """A connection from an address of loopback."""
    made = socket.socket()
    made.bind((source, 0))
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, ("127.0.0.1", port))
    await loop.sock_sendall(made, says)
    return made


async def ended(held: socket.socket) -> bool:
    """Waits until the other end has hung up."""
    try:
        while await asyncio.get_running_loop().sock_recv(held, 4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize(
    "says",
    [b"", b"GET /metrics HT", b"GET /healthz HTTP/1.1\r\nContent-Length: 9\r\n\r\n"],
    ids=["nothing", "half a head", "no body"],
)
async def test_who_takes_all_connections_is_not_heard_instead_of_the_kubelet(
    base: str, says: bytes
) -> None:
    port = int(base.rpartition(":")[2])
    # The kubelet has one, that is older than all of them.
    kubelet = await hold(port, "127.0.0.1", b"GET /readyz HTTP/1.1\r\n")
    greedy = [await hold(port, "127.0.0.2", says) for _ in range(MOST + 40)]
    assert (await fetch(f"{base}/healthz"))[0] == 200
    for each in greedy[:40]:
        assert await ended(each)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(kubelet, b"Host: a\r\n\r\n")
    assert (await loop.sock_recv(kubelet, 99)).startswith(b"HTTP/1.1 200 ")
    for each in (kubelet, *greedy):
        each.close()


async def test_a_connection_ends_whatever_its_end_does_not_take() -> None:
    async def large(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bytes(64 << 20))

    runner = web.ServerRunner(Visitors(large, seconds=0.2))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    loop = asyncio.get_running_loop()
    quiet, deaf = await hold(port, "127.0.0.1"), await hold(port, "127.0.0.1", request)
    assert await ended(quiet)
    # As long as nobody takes it, its end is not seen: what was sent before comes first.
    taken = 0
    while more := await loop.sock_recv(deaf, 1 << 20):
        taken += len(more)
    assert 0 < taken < 64 << 20
    for each in (quiet, deaf):
        each.close()
    await runner.cleanup()


async def test_one_request_for_each_connection(base: str) -> None:
    port = int(base.rpartition(":")[2])
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    held = await hold(port, "127.0.0.1", request * 2)
    loop, heard = asyncio.get_running_loop(), b""
    while more := await loop.sock_recv(held, 4096):
        heard += more
    assert heard.count(b"HTTP/1.1 200") == 1
    held.close()


@pytest.mark.parametrize(
    "says",
    [
        *(b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"),
        b"GET /metrics HTTP/1.1\r\nContent-Length: x\r\nSecret: words\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_nobody_writes_into_the_log_by_what_is_no_request(
    base: str, says: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    held = await hold(int(base.rpartition(":")[2]), "127.0.0.2", says)
    loop, heard = asyncio.get_running_loop(), b""
    while more := await loop.sock_recv(held, 4096):
        heard += more
    held.close()
    assert heard.split()[1].startswith(b"4")
    assert not caplog.records


async def test_a_failure_of_ours_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: web.BaseRequest) -> web.StreamResponse:
        raise RuntimeError("a bug")

    runner = web.ServerRunner(Visitors(broken))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    assert (await fetch(f"http://127.0.0.1:{runner.addresses[0][1]}/"))[0] == 500
    assert "a bug" in caplog.text
    await runner.cleanup()
