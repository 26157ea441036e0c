"""What a pool makes and deletes: a table of cases, and what holds for every pool."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.api import conditions
from cloister_operator.api.environment import PoolCounts
from cloister_operator.api.pod import PodView
from cloister_operator.plan.pool import (
    FAILED_POD_KEPT,
    MAX_BATCH,
    Failure,
    PoolPlan,
    Proof,
    Wanted,
    counts,
    findings,
    plan_pool,
)
from support.operator_objects import NOW, pod

BROKEN = Failure(conditions.SETUP_FAILED, "setup ended with code 1")
ENDED = (conditions.POD_ENDED, "the exec server ended with code 1")
JUST_NOW = NOW - timedelta(seconds=1)
PROVEN = Proof(True, "tried and could not", NOW)


def plan(
    pods: list[PodView], size: int, failures: dict[str, Failure] | None = None
) -> tuple[int, set[str]]:
    made = plan_pool(pods, failures or {}, Wanted("new", size), NOW)
    return made.create, {each.name for each in made.delete}


@pytest.mark.parametrize(
    ("pods", "size", "create", "delete"),
    [
        pytest.param([], 3, 3, set(), id="empty"),
        pytest.param([], 0, 0, set(), id="nothing wanted"),
        pytest.param([], 100, MAX_BATCH, set(), id="no more than a batch"),
        pytest.param([pod("a")], 1, 0, set(), id="full"),
        pytest.param([pod("a", state="starting")], 1, 0, set(), id="on its way"),
        pytest.param([pod("a", state="claimed")], 1, 1, set(), id="a claimed pod is no pool's"),
        pytest.param([pod("a", deleting=True)], 1, 1, set(), id="one that goes does not count"),
        pytest.param(
            [pod("a"), pod("b", state="starting")], 1, 0, {"b"}, id="the least ready goes first"
        ),
        pytest.param([pod("a"), pod("b")], 0, 0, {"a", "b"}, id="scaled to nothing"),
        pytest.param([pod("a", end=ENDED)], 1, 1, {"a"}, id="an ended pod is replaced"),
        pytest.param(
            [pod("a", end=ENDED, created=JUST_NOW)], 1, 0, set(), id="an ended pod holds its place"
        ),
        pytest.param([pod("a", recipe="old")], 1, 1, set(), id="old and warm stays"),
        pytest.param(
            [pod("a", recipe="old"), pod("b", state="starting")],
            1,
            0,
            set(),
            id="old and warm stays while the new one starts",
        ),
        pytest.param(
            [pod("a", recipe="old"), pod("b")], 1, 0, {"a"}, id="old goes once the new is warm"
        ),
        pytest.param(
            [pod("a", recipe="old", state="starting")], 1, 1, {"a"}, id="old and not warm goes"
        ),
        pytest.param([pod("a", recipe="old")], 0, 0, {"a"}, id="old goes when nothing is wanted"),
        pytest.param(
            [pod("a", recipe="old", state="claimed"), pod("b")], 1, 0, set(), id="old but claimed"
        ),
    ],
)
def test_pools(pods: list[PodView], size: int, create: int, delete: set[str]) -> None:
    assert plan(pods, size) == (create, delete)


def test_a_broken_pod_is_replaced_after_a_while_and_not_before() -> None:
    pods = [pod("a", state="starting", created=JUST_NOW)]
    early = plan_pool(pods, {"uid-of-a": BROKEN}, Wanted("new", 1), NOW)
    assert (early.create, early.delete) == (0, ())
    assert early.look_again == JUST_NOW + FAILED_POD_KEPT
    late = plan_pool(pods, {"uid-of-a": BROKEN}, Wanted("new", 1), JUST_NOW + FAILED_POD_KEPT)
    assert (late.create, [each.name for each in late.delete]) == (1, ["a"])
    assert late.look_again is None


def test_a_warm_pod_that_broke_replaces_no_old_one() -> None:
    pods = [pod("a"), pod("b", recipe="old")]
    assert plan(pods, 1, {"uid-of-a": BROKEN}) == (1, {"a"})


def test_a_claimed_pod_that_is_broken_is_left_to_its_session() -> None:
    assert plan([pod("a", state="claimed")], 0, {"uid-of-a": BROKEN}) == (0, set())


STATES = st.sampled_from(["starting", "warm", "claimed"])
PODS = st.lists(
    st.builds(
        lambda state, recipe, age, deleting, end: pod(
            state=state,
            recipe=recipe,
            created=NOW - timedelta(seconds=age),
            deleting=deleting,
            end=end,
        ),
        STATES,
        st.sampled_from(["new", "old", "older"]),
        st.integers(0, 90),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([None, None, ENDED]),
    ),
    max_size=12,
).map(lambda pods: [replace(each, name=f"p{i}", uid=f"uid-of-p{i}") for i, each in enumerate(pods)])
SIZES = st.integers(0, 8)


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[PodView], dict[str, Failure], int]:
    """Pods, some of them broken, and a size."""
    pods = draw(PODS)
    broken = [each.uid for each in pods if draw(st.booleans())]
    return pods, dict.fromkeys(broken, BROKEN), draw(SIZES)


def living(pods: list[PodView]) -> list[PodView]:
    return [each for each in pods if each.state != "claimed" and each.alive]


def carried_out(pods: list[PodView], made: PoolPlan) -> list[PodView]:
    """The pool once the plan is carried out and every new pod is warm."""
    gone = {each.uid for each in made.delete}
    kept = [
        replace(each, state="warm") if each.state == "starting" else each
        for each in pods
        if each.uid not in gone and not each.deleting
    ]
    used = {each.name for each in pods}
    fresh = (f"n{i}" for i in range(1000) if f"n{i}" not in used)
    return [*kept, *(pod(next(fresh), created=NOW) for _ in range(made.create))]


@given(pools())
def test_claimed_pods_are_never_deleted_and_change_nothing(
    pool: tuple[list[PodView], dict[str, Failure], int],
) -> None:
    pods, failures, size = pool
    made = plan_pool(pods, failures, Wanted("new", size), NOW)
    assert all(each.state != "claimed" for each in made.delete)
    without = [each for each in pods if each.state != "claimed"]
    assert plan_pool(without, failures, Wanted("new", size), NOW) == made


@given(pools())
def test_each_pod_is_deleted_once_and_none_that_goes_already(
    pool: tuple[list[PodView], dict[str, Failure], int],
) -> None:
    pods, failures, size = pool
    made = plan_pool(pods, failures, Wanted("new", size), NOW)
    uids = [each.uid for each in made.delete]
    assert len(uids) == len(set(uids))
    assert all(not each.deleting for each in made.delete)


@given(pools())
def test_the_population_never_exceeds_the_size_plus_what_was_there(
    pool: tuple[list[PodView], dict[str, Failure], int],
) -> None:
    pods, failures, size = pool
    made = plan_pool(pods, failures, Wanted("new", size), NOW)
    current = [each for each in living(pods) if each.recipe == "new"]
    gone = {each.uid for each in made.delete}
    kept = [each for each in current if each.uid not in gone]
    assert made.create <= MAX_BATCH
    assert len(kept) + made.create <= size


@given(pools())
def test_warm_pods_stay_until_as_many_new_ones_are_warm(
    pool: tuple[list[PodView], dict[str, Failure], int],
) -> None:
    pods, failures, size = pool
    healthy = [each for each in living(pods) if each.uid not in failures and each.state == "warm"]
    made = plan_pool(pods, failures, Wanted("new", size), NOW)
    gone = {each.uid for each in made.delete}
    left = [each for each in healthy if each.uid not in gone]
    assert len(left) >= min(size, len(healthy))


@given(PODS, SIZES)
def test_carrying_out_plans_ends_in_a_pool_that_wants_nothing(
    pods: list[PodView], size: int
) -> None:
    now = NOW
    for _ in range(6):
        made = plan_pool(pods, {}, Wanted("new", size), now)
        starting = any(each.state == "starting" for each in living(pods))
        if not starting and (made.create, made.delete, made.look_again) == (0, (), None):
            break
        now = made.look_again or now
        pods = carried_out(pods, made)
    else:
        pytest.fail("six rounds did not settle the pool")
    assert [each.recipe for each in living(pods)] == ["new"] * size


def test_counts_say_each_pod_once() -> None:
    pods = [
        pod("a"),
        pod("b", state="starting"),
        pod("c", state="claimed"),
        pod("d", state="claimed", end=ENDED),
        pod("e", state="starting"),
        pod("f", end=ENDED),
        pod("g", deleting=True),
    ]
    assert counts(pods, {"uid-of-e": BROKEN}) == PoolCounts(
        ready=1, starting=1, claimed=1, failed=2
    )


def conditions_of(
    pods: list[PodView], size: int, proof: Proof | None = PROVEN, **failures: Failure
) -> dict[str, tuple[str, str]]:
    uids = {f"uid-of-{name}": failure for name, failure in failures.items()}
    return {
        each.type: (each.status, each.reason)
        for each in findings(pods, uids, Wanted("new", size), proof)
    }


@pytest.mark.parametrize(
    ("found", "ready", "pool"),
    [
        pytest.param(
            conditions_of([pod("a")], 1), ("True", "Available"), ("True", "PoolFilled"), id="full"
        ),
        pytest.param(
            conditions_of([], 0), ("True", "Available"), ("True", "PoolFilled"), id="of no pods"
        ),
        pytest.param(
            conditions_of([pod("a", state="starting")], 1),
            ("False", "PoolFilling"),
            ("False", "PoolFilling"),
            id="starting",
        ),
        pytest.param(
            conditions_of([pod("a")], 2), ("True", "Available"), ("False", "PoolFilling"), id="some"
        ),
        pytest.param(
            conditions_of([pod("a", recipe="old")], 1),
            ("True", "Available"),
            ("False", "PoolFilling"),
            id="old ones",
        ),
        pytest.param(
            conditions_of([pod("a", state="starting")], 1, a=BROKEN),
            ("False", "SetupFailed"),
            ("False", "SetupFailed"),
            id="setup",
        ),
        pytest.param(
            conditions_of([pod("a", state="starting", trouble=("Unschedulable", "no room"))], 1),
            ("False", "Unschedulable"),
            ("False", "Unschedulable"),
            id="no node",
        ),
        pytest.param(
            conditions_of([pod("a")], 1, a=BROKEN),
            ("False", "SetupFailed"),
            ("False", "SetupFailed"),
            id="warm and broken since",
        ),
        pytest.param(
            conditions_of([pod("a")], 1, Proof(False, "reached it", NOW)),
            ("False", "NetworkNotEnforced"),
            ("True", "PoolFilled"),
            id="open network",
        ),
    ],
)
def test_conditions(
    found: dict[str, tuple[str, str]], ready: tuple[str, str], pool: tuple[str, str]
) -> None:
    assert found[conditions.READY] == ready
    assert found[conditions.POOL_READY] == pool


def test_the_network_is_unknown_until_a_pod_was_probed() -> None:
    assert conditions_of([], 1, None)[conditions.NETWORK_ENFORCED] == ("Unknown", "NotProven")
    assert conditions_of([], 1)[conditions.NETWORK_ENFORCED] == ("True", "Proven")
