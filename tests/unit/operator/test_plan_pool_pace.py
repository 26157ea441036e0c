"""How fast pools are filled, tried again, grown and shrunk."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.api import conditions
from cloister_operator.plan.candidates import choose
from cloister_operator.plan.demand import (
    SHRINK_AFTER,
    SHRINK_EVERY,
    Bounds,
    Demand,
    Target,
    bounds,
    next_target,
    shrinks_at,
)
from cloister_operator.plan.failure import Failure
from cloister_operator.plan.refill import Refill, slow_start
from cloister_operator.plan.trials import (
    FIRST_RETRY,
    LONGEST_RETRY,
    Trials,
    is_held,
    refused,
    watch,
)
from support.operator_objects import NOW, pod

SECOND = timedelta(seconds=1)
BROKEN = Failure(conditions.SETUP_FAILED, "setup ended with code 1")
ENDED = (conditions.POD_ENDED, "the exec server ended with code 1")


def test_pods_are_made_in_batches_that_double() -> None:
    assert list(slow_start(40, 16)) == [1, 2, 4, 8, 16, 9]
    assert list(slow_start(0, 16)) == []


@given(st.integers(0, 2000), st.integers(1, 300))
def test_the_batches_are_all_of_them(count: int, most: int) -> None:
    batches = list(slow_start(count, most))
    assert sum(batches) == count
    assert max(batches, default=0) <= most


ASKS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 30), st.floats(0, 2)), max_size=40
)


@given(ASKS, st.floats(0.5, 50))
def test_no_more_tokens_are_given_than_come_in(
    asks: list[tuple[str, int, float]], rate: float
) -> None:
    refill, now, given_out = Refill(rate), 0.0, 0
    for who, want, pause in asks:
        now += pause
        granted = refill.take(who, want, now)
        assert 0 <= granted <= want
        given_out += granted
    assert given_out <= max(1.0, rate) + rate * now + 1e-6


def test_a_pool_of_thousands_keeps_no_small_one_waiting() -> None:
    refill, now, got = Refill(10), 0.0, {"large": 0, "small": 0}
    refill.take("large", 1000, now)
    for _ in range(40):
        now += 0.1
        got["large"] += refill.take("large", 1000, now)
        got["small"] += refill.take("small", 5 - got["small"], now)
    assert got["small"] == 5
    assert got["large"] >= 30


def test_who_has_to_wait_gets_a_token_when_it_was_told_to_come() -> None:
    refill = Refill(2, burst=1)
    assert [refill.take(who, 1, 0.0) for who in "abc"] == [1, 0, 0]
    assert refill.take("b", 1, refill.wait("b", 0.0)) == 1
    when = 0.5 + refill.wait("c", 0.5)
    assert refill.take("c", 1, when) == 1


def test_who_does_not_come_back_stands_in_nobodys_way() -> None:
    refill = Refill(1, burst=1)
    refill.take("gone", 5, 0.0)
    refill.take("gone", 5, 0.0)
    assert refill.take("here", 1, 100.0) == 1


def test_failures_are_tried_again_ever_more_seldom() -> None:
    trials, now = Trials("new"), NOW
    waits = []
    for n in range(8):
        failed = pod(f"p{n}", state="starting", created=now, end=ENDED)
        now += SECOND
        trials = watch(trials, [failed], {}, "new", now)
        assert trials.failures == n + 1
        assert trials.retry_at is not None
        waits.append(trials.retry_at - now)
        now = trials.retry_at + SECOND
    assert waits[:3] == [FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY]
    assert waits[-1] == LONGEST_RETRY


def test_pods_that_cannot_be_made_are_tried_again_ever_more_seldom() -> None:
    trials = Trials("old", 7, NOW, BROKEN)
    for failures in (1, 2, 3):
        trials = refused(trials, "new", BROKEN, NOW)
        assert trials == Trials("new", failures, NOW, BROKEN)
        assert watch(trials, [], {}, "new", NOW + SECOND) == trials


def test_a_clock_that_is_set_back_keeps_no_pool_waiting() -> None:
    ahead = Trials("new", 2, NOW + timedelta(hours=1), BROKEN)
    again = watch(ahead, [], {}, "new", NOW)
    assert again == Trials("new", 2, NOW, BROKEN)
    assert again.retry_at == NOW + 2 * FIRST_RETRY
    large, small = Target(8, NOW + timedelta(hours=1)), Bounds(1, 8)
    kept = next_target(large, 1, small, 8, NOW)
    assert kept == Target(8, NOW)
    assert next_target(kept, 1, small, 8, NOW + SHRINK_AFTER).size == 7


def test_pods_that_were_made_together_fail_once() -> None:
    failed = [pod(f"p{n}", state="starting", end=ENDED, created=NOW) for n in range(3)]
    once = watch(Trials("new"), failed, {}, "new", NOW + SECOND)
    assert once.failures == 1
    assert watch(once, failed, {}, "new", NOW + 2 * SECOND) == once


@pytest.mark.parametrize(
    "good",
    [
        pod("w", created=NOW + 5 * SECOND),
        pod("c", state="claimed", created=NOW + 5 * SECOND),
    ],
)
def test_a_pod_that_comes_up_ends_the_trials(good: object) -> None:
    failing = Trials("new", 3, NOW, BROKEN)
    assert watch(failing, [good], {}, "new", NOW + 9 * SECOND) == Trials("new")  # type: ignore[list-item]
    older = pod("w", created=NOW - SECOND)
    assert watch(failing, [older], {}, "new", NOW + 9 * SECOND) == failing


def test_another_recipe_starts_anew() -> None:
    assert watch(Trials("old", 3, NOW, BROKEN), [], {}, "new", NOW) == Trials("new")


def test_what_says_nothing_about_the_next_pod_is_no_failure() -> None:
    was_warm = pod("a", end=ENDED)
    open_network = pod("b", state="starting")
    failures = {"uid-of-b": Failure(conditions.NETWORK_NOT_ENFORCED, "reached it")}
    assert watch(Trials("new"), [was_warm, open_network], failures, "new", NOW) == Trials("new")


def test_only_what_no_node_takes_is_held() -> None:
    trouble = (conditions.UNSCHEDULABLE, "no node takes the pod")
    pull = (conditions.IMAGE_PULL_FAILED, "ErrImagePull: no such image")
    assert is_held(pod("a", state="starting", ip="", trouble=trouble))
    assert not is_held(pod("a", state="starting", ip="", trouble=pull))
    assert not is_held(pod("a", state="starting", ip=""))


# --- demand ----------------------------------------------------------------------------------


def test_a_quiet_pool_needs_nothing_and_a_single_claim_is_no_rate() -> None:
    demand = Demand()
    assert demand.needed(NOW) == 0
    demand.claimed(NOW)
    assert demand.needed(NOW) == 0


def test_a_pool_needs_what_comes_while_the_next_pods_start() -> None:
    demand = Demand()
    for n in range(51):
        demand.claimed(NOW + n * SECOND / 5)
    now = NOW + 10 * SECOND
    assert demand.rate(now) == pytest.approx(5, rel=0.1)
    # Ten seconds each until a pod is seen to take another time.
    assert 50 <= demand.needed(now) <= 70
    slow = demand.needed(now)
    for _ in range(50):
        demand.warmed(timedelta(seconds=2))
    assert demand.needed(now) < slow / 2
    assert demand.needed(now + timedelta(minutes=2)) == 0


@given(
    st.none() | st.integers(0, 50),
    st.integers(0, 50),
    st.none() | st.integers(0, 80),
    st.integers(0, 60),
    st.none() | st.integers(0, 40),
    st.integers(0, 200),
    st.integers(0, 100),
    st.integers(0, 600),
)
def test_a_target_is_always_within_its_bounds(
    before: int | None,
    size: int,
    grows_to: int | None,
    platform: int,
    places: int | None,
    needed: int,
    present: int,
    passed: int,
) -> None:
    limits = bounds(size, grows_to, platform, places)
    assert limits.floor <= limits.ceiling
    assert limits.floor == min(size, platform)
    assert limits.ceiling <= max(limits.floor, platform)
    was = None if before is None else Target(before, NOW)
    target = next_target(was, needed, limits, present, NOW + passed * SECOND)
    assert limits.floor <= target.size <= limits.ceiling
    if grows_to is None:
        assert target.size == limits.floor


def test_a_pool_grows_at_once_and_shrinks_slowly_to_its_size() -> None:
    limits = Bounds(2, 20)
    target = next_target(Target(2, NOW), 12, limits, 2, NOW)
    assert target == Target(12, NOW)
    now = NOW + SHRINK_AFTER - SECOND
    assert next_target(target, 0, limits, 12, now) == target
    sizes = []
    while (due := shrinks_at(target, limits)) is not None:
        now = due
        target = next_target(target, 0, limits, target.size, now)
        sizes.append(target.size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 11
    assert sizes[-1] == 2
    assert now - NOW <= SHRINK_AFTER + 12 * SHRINK_EVERY


def test_a_restarted_operator_keeps_the_pool_that_is_there_for_a_while() -> None:
    assert next_target(None, 0, Bounds(2, 20), 9, NOW) == Target(9, NOW)
    assert next_target(None, 0, Bounds(2, 5), 9, NOW) == Target(5, NOW)


# --- candidates ------------------------------------------------------------------------------


def test_the_oldest_pod_of_the_node_with_most_of_them_is_taken() -> None:
    pods = [
        pod("a", node="n1", created=NOW - 9 * SECOND),
        pod("b", node="n2", created=NOW - 3 * SECOND),
        pod("c", node="n2", created=NOW - 5 * SECOND),
    ]
    chosen = choose(pods)
    assert chosen is not None
    assert chosen.name == "c"
    assert choose([]) is None
