"""Sandboxes that together have as many connections as a gateway serves."""

import contextlib
import itertools
import socket
from collections.abc import Iterator

import pytest

from cloister_gateway.settings import Settings
from support.gateway_rig import until
from support.gateway_world import World, world

pytestmark = pytest.mark.long

PLACES, EACH = 64, 32
GREEDY = [f"10.90.0.{each}" for each in range(11, 17)]
HONEST = "10.90.0.20"
PACE = 8
HURRIED = Settings(connections_per_s=100, connections_per_10s=32 * PACE)


@pytest.fixture
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway with few places."""
    bounds = {
        "CLOISTER_GATEWAY_MAX_CONNECTIONS": str(PLACES),
        "CLOISTER_GATEWAY_MAX_CONNECTIONS_PER_SOURCE": str(EACH),
    }
    with world(tmp_path_factory.mktemp("crowd"), bounds) as made:
        made.operator.apply(dict.fromkeys([*GREEDY, HONEST], "some"), {"some": ("ok.test",)})
        yield made


def test_many_sources_together_leave_places_to_who_has_few(here: World) -> None:
    settings = Settings(max_connections=PLACES, max_connections_per_source=EACH)
    held: list[socket.socket] = []
    try:
        # They would have three times as many as there are.
        for each in GREEDY * EACH:
            with contextlib.suppress(ConnectionResetError):
                held.append(here.client.connect(each))
        until(lambda: len(left := open_ones(held)) <= PLACES and left, "the refusals")
        assert settings.scarce <= len(open_ones(held)) < PLACES
        for _ in range(2 * EACH):
            assert here.client.status(HONEST, "evil.test:443") == 403
        mine = [here.client.connect(HONEST) for _ in range(settings.share)]
        held += mine
        assert open_ones(mine) == mine
    finally:
        for one in held:
            one.close()


@pytest.fixture
def pressed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that is pressed as soon as two connections come within a second."""
    bounds = {
        "CLOISTER_GATEWAY_CONNECTIONS_PER_S": "1",
        "CLOISTER_GATEWAY_CONNECTIONS_PER_10S": str(16 * PACE),
    }
    with world(tmp_path_factory.mktemp("pressed"), bounds) as made:
        made.operator.apply(dict.fromkeys([*GREEDY, HONEST], "some"), {"some": ("ok.test",)})
        yield made


def test_many_sources_together_leave_decisions_to_who_asks_seldom(pressed: World) -> None:
    settings = Settings(connections_per_10s=16 * PACE)
    # Each stays far below what one source may open: it is refused for what all of them do.
    asked = itertools.islice(itertools.cycle(GREEDY), len(GREEDY) * 8 * settings.pace)
    assert any(turned_away(pressed, each) for each in asked)
    for _ in range(settings.pace - 1):
        assert pressed.client.status(HONEST, "evil.test:443") == 403


@pytest.fixture
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that a single source can press."""
    bounds = {
        "CLOISTER_GATEWAY_CONNECTIONS_PER_S": str(HURRIED.connections_per_s),
        "CLOISTER_GATEWAY_CONNECTIONS_PER_10S": str(HURRIED.connections_per_10s),
    }
    with world(tmp_path_factory.mktemp("hurried"), bounds) as made:
        made.operator.apply({GREEDY[0]: "some", HONEST: "some"}, {"some": ("ok.test",)})
        yield made


def test_one_source_alone_has_no_other_refused(hurried: World) -> None:
    """Also not one that opens more than is kept for it when many hurry."""
    left = 3 * HURRIED.pace
    assert HURRIED.pace < left < HURRIED.haste
    refused = 0
    while left:
        # So many that it is pressed all the time.
        for _ in range(HURRIED.connections_per_s // 4):
            with contextlib.suppress(ConnectionResetError):
                one = hurried.client.connect(GREEDY[0])
                one.close()
        refused += turned_away(hurried, GREEDY[0])
        assert hurried.client.status(HONEST, "evil.test:443") == 403
        left -= 1
    assert refused


def turned_away(here: World, source: str) -> bool:
    """Whether a connection of this source is refused before anybody hears what it is for."""
    try:
        return here.client.status(source, "evil.test:443") == 0
    except ConnectionResetError:
        return True


def open_ones(held: list[socket.socket]) -> list[socket.socket]:
    """Those whose other end has not hung up."""
    found = []
    for each in held:
        each.setblocking(False)
        try:
            each.recv(1)
        except BlockingIOError:
            found.append(each)
        except OSError:
            continue
    return found
