"""Places of the Sessions API: shares that leave some to whoever comes next."""

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.sessions_api.places import KEPT, Places, may_have
from cloister_operator.sessions_api.status import Busy

MOST = 64


def taken(places: Places, caller: str, held: contextlib.ExitStack) -> int:
    """How many more places a caller gets that takes all it can."""
    for count in range(MOST + 1):
        with contextlib.ExitStack() as made:
            try:
                made.enter_context(places.one("calls"))
                made.enter_context(places.of(caller, "calls"))
            except Busy:
                return count
            held.enter_context(made.pop_all())
    raise AssertionError("there is no end to its places")


def test_whoever_comes_gets_half_of_what_is_left_and_the_last_are_for_who_has_none() -> None:
    with contextlib.ExitStack() as held:
        places = Places({"calls": MOST})
        assert [taken(places, each, held) for each in "abcd"] == [32, 16, 8, 4]
        # Nobody who has some gets another one now.
        assert [taken(places, each, held) for each in "abcd"] == [0, 0, 0, 0]
        assert [taken(places, f"new-{each}", held) for each in range(MOST // KEPT)] == [1] * 4
        assert taken(places, "too late", held) == 0
    with contextlib.ExitStack() as held:
        assert taken(places, "a", held) == 32


def test_each_kind_has_places_of_its_own() -> None:
    places = Places({"calls": 1, "watches": 1})
    with places.one("calls"), places.of("a", "calls"):
        with pytest.raises(Busy), places.one("calls"):
            pass
        with places.one("watches"), places.of("a", "watches"):
            pass


@given(callers=st.integers(2, 6), first=st.integers(0, MOST), order=st.randoms())
def test_those_whose_calls_end_and_begin_come_to_like_parts(
    callers: int, first: int, order: random.Random
) -> None:
    """Whatever the first one had, and whoever is quicker."""
    mine = dict.fromkeys(range(callers), 0) | {0: first}
    everybody = list(mine)
    for _ in range(2 * MOST):
        for each in everybody:
            mine[each] -= min(1, mine[each])
        order.shuffle(everybody)
        for each in everybody:
            while may_have(mine[each], MOST - sum(mine.values()), MOST):
                mine[each] += 1
    assert max(mine.values()) <= 2 * min(mine.values())
