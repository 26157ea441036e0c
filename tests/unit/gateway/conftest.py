"""Gateways in network namespaces of their own: one for tests that disturb it, one for others."""

from collections.abc import Iterator

import pytest

from support.gateway_addresses import ATTACKER, CLUSTER, METADATA, PRIVATE, SERVER, SERVER6
from support.gateway_disturbed import disturbed, in_order
from support.gateway_world import World, world

ALLOWED = ("ok.test", "*.wild.test", "inside.test")
POLICIES = {"some": ALLOWED, "none": ()}


@pytest.fixture(autouse=True)
def loopback_only() -> None:
    """In place of the fence around all tests: these connect within their own namespaces."""


@pytest.fixture(scope="module")
def one_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that knows two sandboxes; .13 has no policy at all, .12 one without hosts."""
    with world(tmp_path_factory.mktemp("gateway")) as made:
        made.internet.names.update(
            {
                "ok.test": [SERVER],
                "a.wild.test": [SERVER],
                "b.a.wild.test": [SERVER],
                "wild.test": [SERVER],
                "evilwild.test": [ATTACKER],
                "evil.test": [ATTACKER],
                "six.wild.test": [SERVER6],
                "private.wild.test": [PRIVATE],
                "metadata.wild.test": [METADATA],
                "cluster.wild.test": [CLUSTER],
                "mapped.wild.test": ["::ffff:10.66.0.5"],
                "nat64.wild.test": ["64:ff9b::a9fe:a9fe"],
                "ula.wild.test": ["fd00:ec2::254"],
                "sixtofour.wild.test": ["2002:a42:5::1"],
                "teredo.wild.test": ["2001:0:a42:5::1"],
                "zero.wild.test": ["0.0.0.0"],
                "loop.wild.test": ["127.0.0.1"],
                "mixed.wild.test": [SERVER, PRIVATE],
            }
        )
        yield made


@pytest.fixture
def here(one_world: World) -> World:
    """The gateway in its first state, with nothing asked and nothing seen."""
    one_world.internet.forget()
    one_world.operator.apply(
        {"10.90.0.11": "some", "10.90.0.12": "none", "fd90::11": "some"}, POLICIES
    )
    return one_world


@pytest.fixture(scope="module")
def upset_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway for the tests that disturb it."""
    with disturbed(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture
def upset(upset_world: World) -> World:
    """That gateway with its sandboxes, everything running."""
    return in_order(upset_world)
