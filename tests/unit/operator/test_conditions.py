"""How lists of conditions change."""

from datetime import timedelta

from cloister_operator.api import conditions
from cloister_operator.api.common import Condition
from cloister_operator.api.conditions import Finding, parse_time, timestamp, update
from support.operator_objects import NOW

LATER = NOW + timedelta(minutes=1)
YES = Finding("Ready", "True", conditions.AVAILABLE, "sessions can be claimed")
NO = Finding("Ready", "False", conditions.POOL_FILLING, "0 of 1 pods are warm")


def only(found: list[Condition]) -> Condition:
    (one,) = found
    return one


def test_a_new_condition_gets_its_time_and_generation() -> None:
    assert only(update([], [YES], 3, NOW)) == Condition(
        type="Ready",
        status="True",
        reason="Available",
        message="sessions can be claimed",
        last_transition_time="2026-05-01T12:00:00Z",
        observed_generation=3,
    )


def test_the_time_stays_while_the_status_stays() -> None:
    first = update([], [NO], 1, NOW)
    again = only(update(first, [NO._replace(reason="SetupFailed", message="no")], 2, LATER))
    assert again.last_transition_time == timestamp(NOW)
    assert (again.reason, again.message, again.observed_generation) == ("SetupFailed", "no", 2)


def test_the_time_changes_with_the_status() -> None:
    assert only(update(update([], [NO], 1, NOW), [YES], 1, LATER)).last_transition_time == (
        timestamp(LATER)
    )


def test_conditions_that_are_not_found_anew_stay_as_they_are() -> None:
    pool = Finding("PoolReady", "True", "PoolFilled", "1 of 1 pods are warm")
    first = update([], [YES, pool], 1, NOW)
    second = update(first, [NO], 2, LATER)
    assert [each.type for each in second] == ["Ready", "PoolReady"]
    assert second[1] == first[1]


def test_a_message_is_bounded() -> None:
    assert len(only(update([], [YES._replace(message="x" * 5000)], 1, NOW)).message) == 1000


def test_times_are_written_as_they_are_read() -> None:
    assert parse_time(timestamp(NOW)) == NOW
