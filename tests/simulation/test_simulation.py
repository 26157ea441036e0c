"""Two thousand schedules; each ends with everything that was asked for, and breaks no invariant.

One seed again, with its schedule shrunk if it fails: `pytest tests/simulation --seed N`.
"""

from collections import Counter
from dataclasses import replace

import pytest

from cloister_operator.plan.lanes import Lanes
from simulation import mutants
from simulation.schedule import ACTIONS, Step, draw
from simulation.simulate import Change, explain, first_failure, run
from support.fake_operator import Operator

SEEDS = 2000
PIECE = 50
SOON = 50
"""Of the schedules, those that run in `make check`; the others in `make long`."""


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=() if first < SOON else pytest.mark.long)
        for first in range(0, SEEDS, PIECE)
    ],
)
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
    assert min(drawn.count(each) for each in ACTIONS) > 20
    assert all(len(run(seed).writes) >= 5 for seed in range(5))


@pytest.mark.parametrize("mutant", mutants.MUTANTS)
def test_a_controller_without_one_safeguard_is_found_out(mutant: Change) -> None:
    found = (seed for seed in range(SEEDS) if run(seed, change=mutant).violations)
    assert next(found, None) is not None


VOLUMES = (
    Step(0.0, "environment", 24, 3),
    Step(3.0, "faults", 1, 3),
    *(Step(1.0, "call", n, 0) for n in range(6)),
    *(Step(1.0, "session", n, 1) for n in range(9)),
)
"""Warm pods with workspaces are claimed while every third write goes wrong."""
GONE = (
    Step(0.0, "environment", 0, 3),
    Step(3.0, "forget_history", 0, 0),
    Step(0.0, "node_gone", 0, 0),
    Step(1.0, "call", 0, 0),
)
"""Warm pods go, and only the list after a 410 tells of that."""
AWAY = (
    Step(0.0, "environment", 0, 3),
    *(Step(after, "away", 0, 0) for after in (0.05, 0.2, 0.2)),
)
"""The API server can make pods, and then not be asked for them."""


@pytest.mark.parametrize(
    ("mutant", "steps", "seeds"),
    [
        pytest.param(
            mutants.volume_conflicts_taken_for_claims, VOLUMES, 30, marks=pytest.mark.long
        ),
        (mutants.lost_pods_forgotten, AWAY, 60),
        (mutants.lists_that_delete_nothing, GONE, 8),
    ],
)
def test_rare_misfortunes_harm_nobody(mutant: Change, steps: tuple[Step, ...], seeds: int) -> None:
    """`seeds`: so many that of others, too, one would find the mutant out but once in ten thousand
    times; likewise below.
    """
    assert [run(seed, steps).violations for seed in range(seeds)] == [()] * seeds
    assert any(run(seed, steps, mutant).violations for seed in range(seeds))


SAME_NAME = (
    Step(0.0, "environment", 24, 23),
    Step(0.05, "session", 4, 12),
    Step(0.0, "suspend", 0, 0),
    Step(0.05, "resume", 0, 0),
)


def test_a_pod_gets_an_identity_of_its_own_under_the_name_of_one_before() -> None:
    """A session suspended before it ran has its next pod under the same name, whose Secret the
    garbage collector may be about to take.
    """
    assert [run(seed, SAME_NAME).violations for seed in range(30)] == [()] * 30


def _two_lead(environment: int, trouble: Step) -> tuple[Step, ...]:
    """An Environment (`m` of its step) with warm pods, a second operator that believes for good
    that it leads, some trouble for both, and six callers at once.
    """
    return (
        Step(0.0, "environment", 0, environment),
        Step(3.0, "second", 0, 0),
        replace(trouble, after=3.0),
        *(Step(0.003, "call", n, 0) for n in range(6)),
    )


SENT = (
    Step(0.0, "environment", 24, 14),
    Step(0.05, "delete_pod", 32, 19),
    Step(0.2, "rush", 34, 7),
    Step(0.2, "kill", 6, 0),
)
"""What the dead operator sent for the Environment of before arrives when the next one is done."""


def test_what_a_dead_operator_had_sent_may_arrive_late() -> None:
    assert run(308_027, SENT).violations == ()


LIMITED = (
    Step(0.0, "environment", 0, 1),
    Step(0.0, "call", 26, 13),
    Step(3.0, "forget_history", 35, 15),
    Step(1.0, "rush", 7, 29),
)
"""A session is made for a warm pod while its Environment gets another recipe, and a `maxSessions`
for which there are too many already.
"""


def test_a_limit_that_comes_beside_a_session_leaves_no_pod_over() -> None:
    assert run(312_721, LIMITED).violations == ()


DEAF = Step(0.0, "hold_watches", 0, 2)
"""Each operator knows only of the sessions that were made through it."""


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        pytest.param(_two_lead(26, DEAF), 0, id="of an Environment"),
        pytest.param(_two_lead(3, DEAF), 2, id="of a namespace", marks=pytest.mark.long),
    ],
)
def test_two_leaders_together_let_no_more_sessions_run_than_may(
    steps: tuple[Step, ...], most: int
) -> None:
    assert [run(seed, steps, most=most).violations for seed in range(12)] == [()] * 12
    mutant = mutants.places_not_checked_again
    assert any(run(seed, steps, mutant, most=most).violations for seed in range(12))


def test_two_leaders_who_claim_the_same_pods_give_each_to_one_session() -> None:
    """None was told of the other one's claims."""
    steps = _two_lead(3, DEAF)
    assert [run(seed, steps).violations for seed in range(8)] == [()] * 8
    assert any(run(seed, steps, mutants.claim_without_test).violations for seed in range(8))


LAST_PLACES = (
    Step(0.0, "environment", 24, 35),
    Step(0.2, "session", 7, 4),
    Step(0.2, "second", 16, 32),
    Step(0.2, "open_network", 35, 9),
    Step(0.2, "rush", 26, 33),
    Step(0.0, "open_network", 5, 31),
    Step(0.2, "remove_environment", 14, 22),
)
"""Each operator makes a pod for the last place, and the Environment is gone when they answer."""


def test_a_limit_ends_with_its_environment() -> None:
    assert [run(seed, LAST_PLACES).violations for seed in (2, 31, 48, 49)] == [()] * 4


TWO_RECIPES = (
    Step(0.0, "environment", 24, 21),
    Step(70.0, "second", 14, 9),
    Step(70.0, "environment", 24, 7),
    Step(0.0, "rush", 25, 10),
)
"""One operator knows the new recipe, the other one the old, when sessions with volumes come."""
TWO_RESUME = (
    Step(0.0, "environment", 24, 2),
    Step(0.05, "call", 10, 29),
    Step(0.0, "session", 10, 35),
    Step(1.0, "delete_pod", 20, 14),
    Step(1.0, "call", 30, 31),
    Step(0.05, "resume", 12, 3),
    Step(0.05, "call", 17, 5),
    Step(1.0, "suspend", 3, 27),
    Step(0.0, "second", 29, 19),
    Step(0.05, "call", 4, 8),
    Step(0.05, "resume", 33, 20),
    Step(0.0, "kill", 14, 21),
    Step(1.0, "resume", 9, 28),
)
"""One operator resumes a session, and makes its pod; the other one knows of the pod first."""


@pytest.mark.parametrize("steps", [TWO_RECIPES, TWO_RESUME])
def test_two_leaders_undo_nothing_of_each_other(steps: tuple[Step, ...]) -> None:
    seeds = (7, 21, 31, 37, 2_053_169)
    assert [run(seed, steps).violations for seed in seeds] == [()] * len(seeds)


TWO_SIZES = (
    Step(0.01, "call", 33, 6),
    Step(0.2, "session", 7, 34),
    Step(0.003, "session", 12, 0),
    Step(0.01, "environment", 34, 21),
    Step(0.003, "call", 1, 29),
    Step(0.01, "second", 0, 4),
)
"""One operator makes a pool grow for claims that the other one was not told of."""


@pytest.mark.long
def test_two_leaders_who_want_pools_of_different_sizes_fight_slowly() -> None:
    """The pool shrinks after two minutes; as fast as they can write that is hundreds of pods."""
    found = [run(seed, TWO_SIZES) for seed in range(45)]
    assert [each.violations for each in found] == [()] * len(found)
    made = [sum(write.startswith("create pods ") for write in each.writes) for each in found]
    assert max(made) < 60
    assert max(made) > 20, "they agreed: this shows nothing"


TWO_POOLS = (
    Step(0.0, "environment", 0, 16),
    Step(0.2, "second", 12, 35),
    Step(0.2, "cut_watches", 24, 14),
    Step(0.01, "call", 16, 3),
    Step(0.01, "rush", 22, 8),
    Step(0.01, "call", 6, 16),
    Step(0.01, "remove_environment", 7, 18),
    Step(0.2, "forget_history", 24, 14),
    Step(0.05, "call", 17, 28),
    Step(0.2, "hold_watches", 16, 5),
    Step(0.05, "environment", 4, 22),
)
"""Claims that both were told of make a pool grow to its `maxSize` of five, in each of them before
it hears of the other one's pods.
"""


def test_two_leaders_fill_a_pool_once_each_and_no_more() -> None:
    most = 0
    for seed in (123_640, *range(5)):
        found = run(seed, TWO_POOLS)
        assert found.violations == ()
        made = [write for write in found.writes if write.startswith("create pods ")]
        last = [each for each in made if each.startswith(made[-1].rpartition("-")[0])]
        most = max(most, len(last))
    assert most >= 10, "one of them waited: this shows nothing"


TWO_TARGETS = (
    Step(0.2, "environment", 22, 31),
    Step(3.0, "forget_history", 1, 25),
    Step(0.2, "session", 0, 31),
    Step(0.2, "environment", 22, 22),
    Step(1.0, "away", 11, 11),
    Step(1.0, "second", 11, 33),
    Step(3.0, "remove_environment", 27, 21),
)
"""An operator comes back that wants a pool as large as it was; the other one has made it small
meanwhile.
"""


def test_a_pool_that_is_larger_for_one_operator_shrinks_in_its_time() -> None:
    assert [run(seed, TWO_TARGETS).violations for seed in range(6)] == [()] * 6


TWO_NAMESPACES = (
    Step(0.0, "environment", 0, 20),
    Step(70.0, "rush", 35, 31),
    Step(70.0, "second", 28, 9),
    Step(70.0, "resume", 23, 24),
    Step(70.0, "second", 35, 8),
    Step(0.0, "close_namespace", 7, 3),
    Step(0.0, "resume", 30, 3),
    Step(70.0, "away", 10, 4),
    Step(70.0, "session", 26, 26),
)
"""One operator has seen that a namespace lost its label, the other one that it has it."""


@pytest.mark.long
def test_two_leaders_who_know_different_things_argue_slowly() -> None:
    """A resync shows each of them what the other one knows; as fast as they can write, a session
    is told its reason hundreds of times until then.
    """
    seeds = (104_416, *range(12))
    for seed in seeds[:3]:
        found = run(seed, TWO_NAMESPACES)
        assert found.violations == ()
        told = Counter(write for write in found.writes if write.startswith("patch sessions/status"))
        assert max(told.values()) < 25
    mutant = mutants.contradicting_at_once
    assert any(run(seed, TWO_NAMESPACES, mutant).violations for seed in seeds)


CALLED = (
    Step(0.0, "environment", 0, 3),
    Step(3.0, "kill_at", 0, 5),
    Step(0.0, "call", 0, 0),
)
"""An operator dies when its caller has the answer, and before it writes the session's status."""
TWO_CALLED = (
    *_two_lead(3, Step(0.0, "faults", 0, 3))[:3],
    *(Step(0.2, "call", n, 0) for n in range(6)),
)


@pytest.mark.parametrize(
    ("mutant", "steps", "seeds"),
    [
        (mutants.start_taken_from_the_write, CALLED, 12),
        (mutants.promises_unknown, (*CALLED, Step(0.05, "suspend")), 12),
        (
            mutants.first_pods_unknown,
            (*CALLED, *(Step(after, "delete_pod", n) for n, after in enumerate((0.05, 0.0, 0.0)))),
            12,
        ),
        pytest.param(mutants.first_pods_unknown, TWO_CALLED, 35, marks=pytest.mark.long),
    ],
)
def test_what_a_caller_was_told_is_what_the_status_says(
    mutant: Change, steps: tuple[Step, ...], seeds: int
) -> None:
    assert [run(seed, steps).violations for seed in range(seeds)] == [()] * seeds
    assert any(run(seed, steps, mutant).violations for seed in range(seeds))


FLOOD = (
    Step(0.0, "environment", 0, 1),
    Step(0.0, "environment", 1, 1),
    Step(10.0, "flood", 40),
    Step(0.0, "session", 1, 2),
)


def _overtaken(change: Change) -> int:
    """How many sessions of a flood get a pod before one of another Environment claims its own: of
    several seeds the middle one.
    """
    found = []
    for seed in range(5):
        writes = run(seed, FLOOD, change).writes
        proven, claimed, *_ = (
            n for n, each in enumerate(writes) if each.startswith("patch pods e1-")
        )
        assert proven < claimed
        found.append(sum(each.startswith("create pods e0-") for each in writes[:claimed]))
    return sorted(found)[2]


@pytest.mark.long
def test_a_flood_of_one_environment_keeps_no_session_of_another_waiting() -> None:
    def narrow(operator: Operator) -> None:
        operator.context.queue._at_once = 8

    def in_one_lane(operator: Operator) -> None:
        narrow(operator)
        operator.context.queue._ready = Lanes(lambda _: ("", ""))

    assert _overtaken(narrow) < 30
    assert _overtaken(in_one_lane) >= 40


def test_a_failure_is_explained_by_its_shortest_schedule() -> None:
    mutant = mutants.policies_forgotten
    seed = next(each for each in range(SEEDS) if run(each, change=mutant).violations)
    text = explain(seed, run(seed, change=mutant), mutant)
    steps = [line for line in text.splitlines() if line.startswith("    Step(")]
    assert 1 <= len(steps) <= len(draw(seed))
    assert f"--seed {seed}" in text
