"""What a sandbox with unrestricted networking must not reach: all that is not the internet."""

import pytest

import cloister
from redteam.attacks import Attack, carry_out, in_pod
from redteam.direct import INSIDE, query, tls, udp
from redteam.targets import Targets
from support.fake_internet import FakeInternet
from support.fake_internet_names import ATTACKER, EVIL, NAME_SERVER


@pytest.mark.attack
@pytest.mark.parametrize("attack", INSIDE, ids=lambda each: each.name)
def test_inside_from_outside(
    attack: Attack, unrestricted: cloister.Session, world: FakeInternet, targets: Targets
) -> None:
    carry_out(attack, unrestricted, world, targets)


def test_the_internet_is_there(unrestricted: cloister.Session, world: FakeInternet) -> None:
    attempts = [tls(ATTACKER, EVIL), query(NAME_SERVER), udp(ATTACKER, 443)]
    attempts.append({"kind": "resolve", "name": "allowed.example.com"})
    results = in_pod(unrestricted, attempts)
    assert [each["reached"] for each in results] == [True] * 4, results
