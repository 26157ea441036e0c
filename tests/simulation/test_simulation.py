"""Thousands of schedules; each ends with everything that was asked for, and breaks no invariant.

One seed again, with its schedule shrunk if it fails: `pytest tests/simulation --seed N`.
"""

import pytest

from simulation import mutants
from simulation.schedule import ACTIONS, Step, draw
from simulation.simulate import Change, explain, first_failure, run

SEEDS = 2000
PIECE = 50


@pytest.mark.parametrize("first", range(0, SEEDS, PIECE))
def test_schedules_converge_and_break_no_invariant(first: int, chosen_seed: int | None) -> None:
    seeds = range(first, first + PIECE) if chosen_seed is None else [chosen_seed]
    failure = first_failure(seeds)
    assert failure is None, failure


def test_a_seed_decides_every_write() -> None:
    for seed in range(5):
        assert run(seed) == run(seed)


def test_the_schedules_do_everything() -> None:
    """Each action is drawn often, and the runs do write."""
    drawn = [step.do for seed in range(SEEDS) for step in draw(seed)]
    assert min(drawn.count(each) for each in ACTIONS) > 50
    assert all(len(run(seed).writes) >= 5 for seed in range(5))


@pytest.mark.parametrize("mutant", mutants.MUTANTS)
def test_a_controller_without_one_safeguard_is_found_out(mutant: Change) -> None:
    found = (seed for seed in range(SEEDS) if run(seed, change=mutant).violations)
    assert next(found, None) is not None


TWO_LEADERS = (
    Step(0.0, "environment", 0, 26),
    Step(3.0, "second", 0, 0),
    Step(3.0, "hold_watches", 0, 2),
    *(Step(0.003, "call", n, 0) for n in range(6)),
)
"""Each operator knows only of the sessions that were made through it."""


def test_two_leaders_together_let_no_more_sessions_run_than_may() -> None:
    assert [run(seed, TWO_LEADERS).violations for seed in range(12)] == [()] * 12
    mutant = mutants.places_not_checked_again
    assert any(run(seed, TWO_LEADERS, mutant).violations for seed in range(12))


def test_a_failure_is_explained_by_its_shortest_schedule() -> None:
    mutant = mutants.cache_not_written_through
    seed = next(each for each in range(SEEDS) if run(each, change=mutant).violations)
    text = explain(seed, run(seed, change=mutant), mutant)
    steps = [line for line in text.splitlines() if line.startswith("    Step(")]
    assert 1 <= len(steps) <= len(draw(seed))
    assert f"--seed {seed}" in text
