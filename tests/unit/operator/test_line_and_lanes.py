"""Who goes next: sessions in line for a place, and keys in lanes for a reconcile."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.plan.lanes import Lanes
from cloister_operator.plan.line import SHOWN, Line, worth_telling

ENTRIES = st.lists(
    st.tuples(st.sampled_from("12"), st.sampled_from("abcdef"), st.sampled_from("uv")), max_size=20
)


@given(ENTRIES, ENTRIES)
def test_a_line_is_in_order_and_knows_who_is_ahead(
    came: list[tuple[str, str, str]], left: list[tuple[str, str, str]]
) -> None:
    line, there = Line(), set()
    for entry in came:
        line.add(entry)
        there.add(entry)
    for entry in left:
        assert line.remove(entry) == (entry in there)
        there.discard(entry)
    assert list(line) == sorted(there)
    assert line.first(3) == sorted(there)[:3]
    for entry in there:
        assert line.ahead_of(entry) == sum(other < entry for other in there)


def test_a_long_line_costs_few_writes_for_each() -> None:
    """Of a thousand in line, the last one is told where it is fewer than thirty times."""
    shown, told = None, 0
    for position in range(1000, 0, -1):
        if worth_telling(shown, position):
            shown, told = position, told + 1
    assert shown == 1
    assert told < 30
    assert all(worth_telling(n + 1, n) for n in range(1, SHOWN + 1))
    assert not worth_telling(100, 99)
    assert not worth_telling(7, 7)
    assert worth_telling(7, 8)


def lanes() -> Lanes[tuple[str, str, int]]:
    return Lanes(lambda key: (key[0], key[:2]))


def test_lanes_take_turns_whatever_their_length() -> None:
    waiting = lanes()
    for n in range(500):
        waiting.add(("team-a", "flood", n), 0.0)
    waiting.add(("team-a", "calm", 0), 1.0)
    waiting.add(("team-b", "calm", 0), 1.0)
    taken = []
    for _ in range(4):
        found = waiting.take(64)
        assert found is not None
        taken.append(found[0][:2])
    assert {("team-a", "calm"), ("team-b", "calm")} <= {*taken}


def test_many_environments_of_one_namespace_do_not_starve_another_namespace() -> None:
    waiting = lanes()
    for n in range(50):
        for m in range(10):
            waiting.add(("team-a", f"e{n}", m), 0.0)
    for m in range(10):
        waiting.add(("team-b", "e", m), 0.0)
    taken: Counter[str] = Counter()
    for _ in range(20):
        found = waiting.take(10_000)
        assert found is not None
        taken[found[0][0]] += 1
    assert taken == {"team-a": 10, "team-b": 10}


def test_one_lane_never_takes_all_places() -> None:
    waiting = lanes()
    for n in range(100):
        waiting.add(("team-a", "flood", n), 0.0)
    running = []
    while (found := waiting.take(64)) is not None:
        running.append(found[0])
    assert len(running) == 32
    waiting.add(("team-b", "calm", 0), 0.0)
    found = waiting.take(64)
    assert found is not None
    assert found[0] == ("team-b", "calm", 0)
    for key in running[:15]:
        waiting.done(key)
    found = waiting.take(64)
    assert found is not None
    assert found[0][1] == "flood"


def all_that_may_run(waiting: Lanes[tuple[str, str, int]], already: int = 0) -> Counter[str]:
    """As the queue takes them: 64 at once. How many of each namespace."""
    taken: Counter[str] = Counter()
    while already + taken.total() < 64 and (found := waiting.take(64)) is not None:
        taken[found[0][0]] += 1
    return taken


def test_no_namespace_takes_the_places_of_others_by_making_lanes() -> None:
    """A tenant may make Environments by the hundred, or sessions that name some that are not there:
    what it has then, another tenant still gets more than one place at once.
    """
    waiting = lanes()
    for n in range(500):
        waiting.add(("flood", f"e{n}", 0), 0.0)
    flood = all_that_may_run(waiting)
    for n in range(100):
        waiting.add(("calm", "py", n), 0.0)
    assert flood == {"flood": 48}
    assert all_that_may_run(waiting, already=48) == {"calm": 16}


def test_what_is_not_shared_is_not_wasted() -> None:
    waiting = lanes()
    for n in range(500):
        waiting.add(("busy", f"e{n % 10}", n), 0.0)
    waiting.add(("calm", "py", 0), 0.0)
    taken = all_that_may_run(waiting)
    assert taken["calm"] == 1
    assert taken["busy"] >= 40


KEYS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 9)),
    unique=True,
    max_size=40,
)


@given(KEYS, st.integers(1, 8))
def test_every_key_comes_once_and_in_the_order_of_its_lane(
    keys: list[tuple[str, str, int]], at_once: int
) -> None:
    waiting = lanes()
    for key in keys:
        waiting.add(key, 0.0)
    assert len(waiting) == len(keys)
    came = []
    while (found := waiting.take(at_once)) is not None:
        came.append(found[0])
        waiting.done(found[0])
    assert sorted(came) == sorted(keys)
    for lane in {key[:2] for key in keys}:
        assert [x for x in came if x[:2] == lane] == [x for x in keys if x[:2] == lane]
    assert len(waiting) == 0
    for counted in (waiting._running, waiting._present, waiting._spaces, waiting._running_in):
        assert not counted
