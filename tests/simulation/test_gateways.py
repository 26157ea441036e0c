"""Operators and egress gateways under faults, in virtual time; see gateways.py."""

from collections.abc import Iterable
from typing import Any

import pytest

from cloister_operator.plan import grants
from cloister_operator.plan.grants import Held, State
from simulation.gateways import run

pytestmark = pytest.mark.long

SEEDS = range(40)


def wrong(seeds: Iterable[int]) -> list[tuple[int, str]]:
    """The first seed that goes wrong, and why."""
    for seed in seeds:
        found = run(seed)
        if found:
            return [(seed, found[0])]
    return []


def test_nobody_is_granted_what_is_somebody_elses() -> None:
    assert wrong(SEEDS) == []


def _forgets_what_was_sent(self: Held, state: State) -> Held:
    return self


def _takes_an_unknown_one_for_empty(gateway: Any, began: Any) -> Held:
    return Held(State())


def _looks_at_those_that_are_led_to(pod: Any, gateways: Any) -> bool:
    return any(held.holds(pod) for _, held in gateways)


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (Held, "sending", _forgets_what_was_sent),
        (grants, "first_known", _takes_an_unknown_one_for_empty),
        (grants, "granted", _looks_at_those_that_are_led_to),
    ],
)
def test_a_safeguard_that_is_taken_out_is_missed(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, mutant: Any
) -> None:
    monkeypatch.setattr(where, name, mutant)
    assert wrong(range(300))
