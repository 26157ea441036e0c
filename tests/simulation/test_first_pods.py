"""Sessions whose first pod goes before the operator that made them has told its status."""

from simulation.schedule import Step
from simulation.simulate import run

TAKEN_ALONG = (
    Step(0.0, "environment", 0, 22),
    Step(20.0, "cut_watches", 22, 18),
    Step(0.0, "kill_at", 16, 29),
    Step(0.0, "remove_environment", 4, 30),
    Step(0.0, "rush", 19, 5),
    Step(0.0, "call", 0, 6),
    Step(0.0, "environment", 12, 29),
    Step(20.0, "kill", 32, 19),
)
"""Warm pods are claimed while the garbage collector takes them, and the one who did it dies."""


def test_what_the_next_operator_finds_on_its_way_out_may_have_been_worked_in() -> None:
    seeds = (101_760, *range(10))
    assert [run(seed, TAKEN_ALONG).violations for seed in seeds] == [()] * len(seeds)
