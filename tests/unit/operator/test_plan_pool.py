"""What a pool makes and deletes: a table of cases, and what holds for every pool."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.api import conditions
from cloister_operator.api.pod import PodView
from cloister_operator.plan.failure import Failure
from cloister_operator.plan.pool import (
    FAILED_POD_KEPT,
    MAX_BATCH,
    OPEN_POD_KEPT,
    SPARED,
    PoolPlan,
    Wanted,
    plan_pool,
)
from cloister_operator.plan.trials import STUCK_AFTER, Trials
from support.operator_objects import NOW, pod

BROKEN = Failure(conditions.SETUP_FAILED, "setup ended with code 1")
ENDED = (conditions.POD_ENDED, "the exec server ended with code 1")
SECOND = timedelta(seconds=1)
JUST_NOW = NOW - SECOND
UNSCHEDULABLE = (conditions.UNSCHEDULABLE, "no node takes the pod")
LONG_AGO = NOW - STUCK_AFTER


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
        pytest.param(
            [pod(f"o{n}", recipe="old") for n in range(8)], 8, 2, set(), id="no more than the surge"
        ),
        pytest.param(
            [
                *[pod(f"o{n}", recipe="old", created=NOW - n * SECOND) for n in range(8)],
                pod("a"),
                pod("b"),
            ],
            8,
            2,
            {"o6", "o7"},
            id="as many old ones go as new ones are warm, the oldest first",
        ),
        pytest.param(
            [pod("a", state="starting", ip="", created=LONG_AGO)], 1, 1, {"a"}, id="stuck"
        ),
        pytest.param(
            [pod("a", state="starting", ip="", created=LONG_AGO, trouble=UNSCHEDULABLE)],
            1,
            0,
            set(),
            id="no node takes it: held, not replaced",
        ),
        pytest.param(
            [pod("a", state="starting", created=LONG_AGO)], 1, 0, set(), id="its setup takes long"
        ),
        pytest.param(
            [pod(f"d{n}", deleting=True) for n in range(3)],
            1,
            0,
            set(),
            id="too many on their way out",
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


def test_a_pod_that_found_the_network_open_goes_on_trying() -> None:
    """Another one would find the same: a pool of a cluster without a network plugin would be made
    and unmade twice a minute.
    """
    found_open = {"uid-of-a": Failure(conditions.NETWORK_NOT_ENFORCED, "it reached the API")}
    pods = [pod("a", state="starting", created=JUST_NOW)]
    for now in (NOW, JUST_NOW + FAILED_POD_KEPT):
        made = plan_pool(pods, found_open, Wanted("new", 1), now)
        assert (made.create, made.delete) == (0, ())
        assert made.look_again == JUST_NOW + OPEN_POD_KEPT
    late = plan_pool(pods, found_open, Wanted("new", 1), JUST_NOW + OPEN_POD_KEPT)
    assert (late.create, [each.name for each in late.delete]) == (1, ["a"])


def test_a_warm_pod_that_broke_replaces_no_old_one() -> None:
    pods = [pod("a"), pod("b", recipe="old")]
    assert plan(pods, 1, {"uid-of-a": BROKEN}) == (1, {"a"})


def test_a_claimed_pod_that_is_broken_is_left_to_its_session() -> None:
    assert plan([pod("a", state="claimed")], 0, {"uid-of-a": BROKEN}) == (0, set())


def test_pods_that_may_have_been_made_count() -> None:
    assert plan_pool([], {}, Wanted("new", 3), NOW, in_flight=2).create == 1
    assert plan_pool([], {}, Wanted("new", 3), NOW, in_flight=4).create == 0


def test_what_another_process_has_just_made_is_not_one_too_many_yet() -> None:
    pods = [pod("mine", created=JUST_NOW), *(pod(n, created=JUST_NOW) for n in ("a", "b"))]
    others = {"uid-of-a", "uid-of-b"}
    early = plan_pool(pods, {}, Wanted("new", 0), NOW, others=others)
    assert [each.name for each in early.delete] == ["mine"]
    assert early.look_again == JUST_NOW + SPARED
    left = pods[1:]
    late = plan_pool(left, {}, Wanted("new", 0), JUST_NOW + SPARED, others=others)
    assert ([each.name for each in late.delete], late.look_again) == (["a", "b"], None)
    # They count, so that none is made beside them.
    assert early.create == plan_pool(left, {}, Wanted("new", 2), NOW, others=others).create == 0


def test_what_another_process_made_for_an_older_recipe_or_in_vain_is_not_spared() -> None:
    pods = [
        pod("warm", created=JUST_NOW),
        pod("old", recipe="old", created=JUST_NOW),
        pod("failed", end=ENDED, created=NOW - FAILED_POD_KEPT),
    ]
    others = {each.uid for each in pods}
    made = plan_pool(pods, {}, Wanted("new", 1), NOW, others=others)
    assert {each.name for each in made.delete} == {"old", "failed"}


def test_while_a_recipe_fails_one_pod_is_tried_when_it_is_time() -> None:
    trials = Trials("new", 2, NOW, BROKEN)
    assert trials.retry_at is not None
    early = plan_pool([], {}, Wanted("new", 5), NOW, trials)
    assert (early.create, early.look_again) == (0, trials.retry_at)
    assert plan_pool([], {}, Wanted("new", 5), trials.retry_at, trials).create == 1
    starting = [pod("a", state="starting")]
    assert plan_pool(starting, {}, Wanted("new", 5), trials.retry_at, trials).create == 0


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
    gone = {each.uid for each in made.delete}
    left = [each for each in living(pods) if each.uid not in gone]
    new = [each for each in left if each.recipe == "new"]
    assert made.create <= MAX_BATCH
    if made.create:
        assert len(new) + made.create <= size
        assert len(left) + made.create <= size + Wanted("new", size).surge
    well = [each for each in new if each.uid not in failures]
    assert len(well) <= size


@given(pools())
def test_what_is_done_already_is_not_planned_again(
    pool: tuple[list[PodView], dict[str, Failure], int],
) -> None:
    """A pool whose plan is carried out plans the same only when time or a pod has moved on."""
    pods, failures, size = pool
    made = plan_pool(pods, failures, Wanted("new", size), NOW)
    fresh = [pod(f"n{n}", state="starting", ip="", created=NOW) for n in range(made.create)]
    gone = {each.uid for each in made.delete}
    after = [replace(each, deleting=True) if each.uid in gone else each for each in pods] + fresh
    again = plan_pool(after, failures, Wanted("new", size), NOW)
    assert (again.create, again.delete) == (0, ())


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
    for _ in range(20):
        made = plan_pool(pods, {}, Wanted("new", size), now)
        starting = any(each.state == "starting" for each in living(pods))
        if not starting and (made.create, made.delete, made.look_again) == (0, (), None):
            break
        now = made.look_again or now
        pods = carried_out(pods, made)
    else:
        pytest.fail("twenty rounds did not settle the pool")
    assert [each.recipe for each in living(pods)] == ["new"] * size
