"""What an unrestricted sandbox must not reach: all that is not the internet, and mail servers."""

import pytest

import cloister
from redteam.attacks import Attack, carry_out, in_pod, row
from redteam.direct import INSIDE, query, tcp, tls, udp
from redteam.targets import Targets
from support.fake_internet import FakeInternet
from support.fake_internet_names import ATTACKER, ATTACKER6, EVIL, NAME_SERVER

MAIL = row("mail-servers", tcp(ATTACKER, 25), tcp(ATTACKER6, 25))
"""Nobody sends mail from the platform's addresses, unless it says so."""


@pytest.mark.attack
@pytest.mark.parametrize("attack", [*INSIDE, MAIL], ids=lambda each: each.name)
def test_inside_from_outside(
    attack: Attack, unrestricted: cloister.Session, world: FakeInternet, targets: Targets
) -> None:
    carry_out(attack, unrestricted, world, targets)


def test_the_internet_is_there(unrestricted: cloister.Session, world: FakeInternet) -> None:
    attempts = [tls(ATTACKER, EVIL), query(NAME_SERVER), udp(ATTACKER, 443)]
    # Below and above the port that is closed.
    attempts += [tcp(ATTACKER, 22), tcp(ATTACKER, 587)]
    attempts.append({"kind": "resolve", "name": "allowed.example.com"})
    results = in_pod(unrestricted, attempts)
    assert all(each["reached"] for each in results), results
