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
    # In the last two, one of them stands in line, and waits for its Environment in between.
    seeds = (101_760, *range(10), 1093, 1207)
    assert [run(seed, TAKEN_ALONG).violations for seed in seeds] == [()] * len(seeds)


REPEATED_TO_BOTH = (
    Step(0.0, "environment", 0, 23),
    Step(20.0, "kill_at", 1, 2),
    Step(20.0, "second", 8, 17),
    Step(0.0, "faults", 7, 2),
    Step(0.0, "faults", 10, 13),
    Step(3.0, "forget_history", 13, 35),
    Step(3.0, "delete_pod", 22, 5),
    Step(3.0, "rush", 17, 23),
    Step(0.0, "session", 4, 4),
    Step(0.0, "away", 32, 9),
    Step(0.0, "forget_history", 0, 35),
    Step(20.0, "call", 29, 4),
)
"""Two operators get the same calls: each holds a pod for a Session that the other one makes for
another pod, which is held for somebody else.
"""


def test_who_holds_a_pod_for_a_session_does_not_take_another_one_for_it() -> None:
    seeds = (507_812, 231, 243, 298)
    assert [run(seed, REPEATED_TO_BOTH).violations for seed in seeds] == [()] * len(seeds)


ENDED = (
    Step(0.0, "environment", 0, 5),
    Step(3.0, "faults", 20, 35),
    Step(3.0, "environment", 33, 29),
    Step(3.0, "rush", 6, 1),
    Step(0.01, "fail_pod", 0, 4),
    Step(20.0, "session", 19, 7),
    Step(3.0, "session", 2, 27),
)
"""The pod that a session is made for ends while it is claimed, and the API server is too busy."""


def test_a_pod_that_ends_while_it_is_claimed_goes() -> None:
    seeds = (2_072_664, *range(8))
    assert [run(seed, ENDED).violations for seed in seeds] == [()] * len(seeds)
