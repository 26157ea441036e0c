"""Who gets a place first, where sessions wait in line."""

from simulation.schedule import Step
from simulation.simulate import run

LATE = (
    Step(0.0, "environment", 0, 30),
    Step(3.0, "away", 0, 6),
    Step(1.0, "session", 17, 13),
    Step(3.0, "rush", 22, 27),
    Step(3.0, "second", 18, 17),
)
"""A place is given while older sessions are yet unknown, and the claim arrives when they have been
told that they wait.
"""


def test_a_place_is_given_to_the_oldest_of_those_that_were_told_to_wait() -> None:
    seeds = (972_405, *range(10))
    assert [run(seed, LATE).violations for seed in seeds] == [()] * len(seeds)
