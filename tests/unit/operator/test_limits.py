"""Rate limits of callers: never more than allowed, and never less for who waits as told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.sessions_api.limits import Rate, RateLimits
from cloister_operator.sessions_api.status import Busy
from support.sessions_parts import Clock


def refusal(limits: RateLimits, caller: str = "alice", method: str = "Create") -> Busy | None:
    """What the call is refused with, if it is."""
    try:
        limits.take(caller, method)
    except Busy as error:
        return error
    return None


def test_a_burst_then_as_many_as_the_rate_allows() -> None:
    clock = Clock()
    limits = RateLimits(Rate(2, 3), Rate(0), clock)
    assert [refusal(limits) for _ in range(3)] == [None] * 3
    refused = refusal(limits)
    assert refused is not None
    assert refused.reason == "RATE_LIMITED"
    assert refused.retry_after == pytest.approx(0.5)
    assert refused.metadata == {"limit": "create"}
    clock.now += 0.49
    assert refusal(limits) is not None
    clock.now += 0.02
    assert refusal(limits) is None
    clock.now += 100
    assert [refusal(limits) is None for _ in range(4)] == [True, True, True, False]


def test_each_caller_and_each_kind_of_call_has_its_own() -> None:
    limits = RateLimits(Rate(1, 1), Rate(1, 2), Clock())
    assert refusal(limits) is None
    assert refusal(limits, method="Resume") is not None
    assert refusal(limits, "bob") is None
    assert [refusal(limits, method=each) is None for each in ("Get", "Watch", "Delete")] == [
        True,
        True,
        False,
    ]


def test_no_limit_remembers_nobody() -> None:
    limits = RateLimits(Rate(0), Rate(0), Clock())
    assert all(refusal(limits) is None for _ in range(1000))
    assert not limits._full_at


def test_the_number_of_callers_remembered_is_bounded() -> None:
    limits = RateLimits(Rate(1, 1), Rate(1, 1), Clock(), max_callers=10)
    for number in range(1000):
        assert refusal(limits, f"caller-{number}") is None
    assert len(limits._full_at) == 20
    assert refusal(limits, "caller-999") is not None


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 5), max_size=200),
)
def test_in_no_stretch_of_time_are_there_more_than_allowed(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    limits = RateLimits(Rate(rate, burst), Rate(0), clock)
    taken: list[float] = []
    for pause in pauses:
        clock.now += pause
        refused = refusal(limits)
        if refused is not None:
            clock.now += refused.retry_after + 1e-9
            assert refusal(limits) is None
        taken.append(clock.now)
    for first, begin in enumerate(taken):
        for last in range(first, len(taken)):
            most = burst + (taken[last] - begin) * rate
            assert last - first + 1 <= most + 0.01
