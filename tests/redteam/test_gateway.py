"""Attacks through the egress gateway, from every kind of sandbox that may reach a few names."""

import pytest

import cloister
from redteam.attacks import Attack, carry_out
from redteam.byname import BY_NAME
from redteam.proxied import LEGITIMATE, PROXIED
from redteam.targets import Targets
from support.fake_internet import FakeInternet


@pytest.mark.attack
@pytest.mark.parametrize("attack", [*PROXIED, *BY_NAME], ids=lambda each: each.name)
def test_through_the_gateway(
    attack: Attack, named: cloister.Session, world: FakeInternet, targets: Targets
) -> None:
    carry_out(attack, named, world, targets, beside=LEGITIMATE)
