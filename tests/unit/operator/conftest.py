"""Fixtures of the operator's tests."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cloister_operator.controller import gateway_link, gateways
from cloister_operator.identity import Authority
from support.fake_operator import World
from support.gateway_site import Site
from support.operator_objects import NOW
from support.sessions_parts import Api, serving


@pytest.fixture(scope="session")
def world_authority() -> Authority:
    """One CA for all clusters: making it is the slowest part."""
    return Authority.create(NOW)


@pytest.fixture
async def make_world(world_authority: Authority) -> AsyncIterator[Callable[..., World]]:
    """Clusters in memory, by the settings that differ from the usual ones."""
    worlds = []

    def make(**changes: Any) -> World:
        worlds.append(World(world_authority, **changes))
        return worlds[-1]

    yield make
    for each in worlds:
        await each.close()


@pytest.fixture
async def world(make_world: Callable[..., World]) -> World:
    """A cluster in memory."""
    return make_world()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """A Sessions API with few places."""
    async with serving(max_calls=4, max_watches=1) as served:
        yield served


@pytest.fixture
async def site(world_authority: Authority) -> AsyncIterator[Site]:
    """A cluster with egress gateways that listen."""
    made = Site(world_authority)
    yield made
    await made.close()


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done again after seconds is done again sooner."""
    monkeypatch.setattr(gateway_link, "HEARTBEAT", 0.02)
    monkeypatch.setattr(gateways, "LOOK", 0.02)
    monkeypatch.setattr(gateway_link, "FEED_PAUSE", 0.02)
