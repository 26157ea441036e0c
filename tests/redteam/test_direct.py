"""Every way out but the gateway, from every kind of sandbox with limited networking."""

import pytest

import cloister
from redteam.attacks import Attack, carry_out
from redteam.direct import DIRECT, tcp
from redteam.targets import Targets
from support.fake_internet import FakeInternet


@pytest.mark.attack
@pytest.mark.parametrize("attack", DIRECT, ids=lambda each: each.name)
def test_past_the_gateway(
    attack: Attack, closed: cloister.Session, world: FakeInternet, targets: Targets
) -> None:
    carry_out(attack, closed, world, targets)


@pytest.mark.attack
def test_the_gateway_is_not_for_everybody(
    sealed: cloister.Session, world: FakeInternet, targets: Targets
) -> None:
    """A sandbox that may reach nothing does not reach the gateways either."""
    attack = Attack(
        "the-gateways-door",
        lambda t: [tcp(each, port) for each in (*t.gateways, t.gateway) for port in (3128, 443)],
        lambda t: [tcp(each, port) for each in t.gateways for port in (3128, 443)],
    )
    carry_out(attack, sealed, world, targets)
