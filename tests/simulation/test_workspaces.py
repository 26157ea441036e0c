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
    # In the last, the one that is behind also claims a warm pod that has failed since.
    seeds = (102_107, *range(8), 2_050_188)
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


TWO_MAKE = (
    Step(0.0, "environment", 24, 5),
    Step(1.0, "node_gone", 13, 35),
    Step(1.0, "session", 15, 23),
    Step(0.0, "hold_watches", 24, 3),
    Step(0.0, "second", 30, 12),
    Step(0.0, "environment", 31, 21),
    Step(0.05, "environment", 34, 8),
    Step(0.0, "session", 3, 22),
    Step(0.05, "call", 28, 20),
    Step(1.0, "fail_pod", 5, 17),
    Step(0.0, "call", 0, 11),
    Step(0.05, "cut_watches", 29, 5),
    Step(1.0, "cut_watches", 27, 25),
    Step(0.05, "fail_pod", 19, 17),
)
"""One operator takes the pod of a session for lost that the other one has replaced, and would make
the next one beside that.
"""


def test_two_leaders_make_one_pod_on_a_workspace() -> None:
    seeds = (972_224, *range(8))
    assert [run(seed, TWO_MAKE).violations for seed in seeds] == [()] * len(seeds)


TWICE = (
    Step(0.0, "environment", 24, 14),
    Step(20.0, "session", 0, 33),
    Step(20.0, "delete_pod", 0),
    Step(0.2, "delete_pod", 1),
    Step(0.2, "delete_pod", 1),
)
"""A session loses two pods in one second."""


def test_each_of_two_losses_in_a_second_is_one() -> None:
    assert [run(seed, TWICE).violations for seed in range(30)] == [()] * 30
