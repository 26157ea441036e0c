"""Metrics and health."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Metric

from cloister_operator import metrics
from cloister_operator.http import METRICS_SECONDS, HttpServer


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
    assert (await fetch(f"{base}/"))[0] == 404
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
