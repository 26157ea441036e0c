"""Workspaces that persist, between operators of which one knows less than the other."""

from simulation.schedule import Step
from simulation.simulate import run

BEHIND = (
    Step(0.0, "environment", 24, 1),
    Step(3.0, "fail_pod", 26, 24),
    Step(0.0, "away", 23, 34),
    Step(0.0, "second", 18, 9),
    Step(0.0, "session", 6, 21),
    Step(3.0, "fail_pod", 9, 2),
    Step(70.0, "call", 25, 9),
)
"""One operator gives a session its second pod; the other one was away and knows of no first one."""


def test_who_is_behind_makes_no_second_pod_on_a_workspace() -> None:
    seeds = (102_107, *range(8))
    assert [run(seed, BEHIND).violations for seed in seeds] == [()] * len(seeds)


SLOW = (
    Step(0.0, "environment", 24, 15),
    Step(0.01, "call", 4, 9),
    Step(0.0, "call", 26, 34),
    Step(0.01, "second", 10, 16),
    Step(20.0, "second", 19, 8),
)
"""One operator is still making the claim of a pod that the other one has given to a session."""


def test_who_is_slow_deletes_no_pod_under_its_session() -> None:
    seeds = (106_614, *range(8))
    assert [run(seed, SLOW).violations for seed in seeds] == [()] * len(seeds)
