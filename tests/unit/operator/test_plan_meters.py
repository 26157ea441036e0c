"""The seconds that a session ran and worked: exact however often it was asked, and by whom."""

from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.api.conditions import timestamp
from cloister_operator.api.session import Phase, SessionStatus
from cloister_operator.plan import meters
from cloister_operator.plan.meters import Reading
from support.operator_objects import NOW

MS = timedelta(milliseconds=1)


def changed(status: SessionStatus, changes: dict[str, Any]) -> SessionStatus:
    """The status as the next operator reads it."""
    body = status.model_copy(update=changes).model_dump(mode="json", by_alias=True)
    return SessionStatus.model_validate(body)


SPANS = st.integers(0, 10**8).map(lambda ms: ms * MS)
RUNS = st.lists(
    st.tuples(SPANS, SPANS, st.integers(0, 1000), st.lists(st.integers(0, 1000), max_size=3)),
    min_size=1,
    max_size=5,
)


@given(RUNS)
def test_runs_add_up_to_the_second(
    runs: list[tuple[timedelta, timedelta, int, list[int]]],
) -> None:
    """Each run: how long it lasts, the pause after it, the share of work, when it is asked."""
    status, now = SessionStatus(), NOW
    ran = worked = timedelta()
    for length, pause, share, asked in runs:
        status = changed(status, {"phase": Phase.RUNNING, **meters.started(status, now)})
        work = length * share // 1000 // MS * MS
        for part in sorted(asked):
            at = now + length * part // 1000
            done = min(work, length * part // 1000)
            status = changed(status, meters.read(status, Reading(at, timedelta(), done)))
            assert status.running_seconds == (ran + at - now) // timedelta(seconds=1)
        now += length
        ran, worked = ran + length, worked + work
        stopped = meters.stopped(status, now, Reading(now, timedelta(), work))
        status = changed(status, {"phase": Phase.SUSPENDED, **stopped})
        assert status.running_seconds == ran // timedelta(seconds=1)
        assert status.active_seconds == worked // timedelta(seconds=1)
        now += pause
    assert status.running_since is None
    assert status.started_at == timestamp(NOW)


MICROSECONDS = st.integers(0, 10**9).map(lambda us: timedelta(microseconds=us))


@given(st.lists(st.tuples(MICROSECONDS, MICROSECONDS, st.booleans()), max_size=40), MICROSECONDS)
def test_restarts_at_any_instant_do_not_change_the_sum(
    runs: list[tuple[timedelta, timedelta, bool]], late: timedelta
) -> None:
    """Each run: how long it lasts, the pause after it, whether its pod answers at its end.

    Every step is another operator's, which knows the status and the time and nothing else.
    """
    status, now, ran = SessionStatus(), NOW, timedelta()
    for length, pause, answers in runs:
        status = changed(status, {"phase": Phase.RUNNING, **meters.started(status, now)})
        # An operator whose write was lost, or came too late, leaves no trace.
        meters.stopped(status, now + length / 2, None)
        now, ran = now + length, ran + length
        assert timedelta() <= ran - meters.ran(status, now) <= len(runs) * MS
        reading = Reading(now, timedelta(), length) if answers else None
        status = changed(status, {"phase": Phase.PENDING, **meters.stopped(status, now, reading)})
        now += pause
    # Nor does a restart that finds it ended.
    status = changed(status, meters.stopped(status, now + late, None))
    lost = ran - timedelta(seconds=status.running_seconds)
    assert timedelta() <= lost < timedelta(seconds=1) + len(runs) * MS


@given(SPANS, SPANS)
def test_a_pod_cannot_have_worked_for_longer_than_it_ran(ran: timedelta, said: timedelta) -> None:
    status = changed(
        SessionStatus(), {"phase": Phase.RUNNING, **meters.started(SessionStatus(), NOW)}
    )
    changes = meters.stopped(status, NOW + ran, Reading(NOW + ran, timedelta(), said))
    assert changes["active_seconds"] <= changes["running_seconds"]


def test_a_lost_pod_accounts_for_what_it_had_said() -> None:
    status = changed(
        SessionStatus(), {"phase": Phase.RUNNING, **meters.started(SessionStatus(), NOW)}
    )
    asked = Reading(NOW + timedelta(seconds=60), timedelta(), timedelta(seconds=20))
    status = changed(status, meters.read(status, asked))
    status = changed(status, meters.stopped(status, NOW + timedelta(seconds=90), None))
    assert (status.running_seconds, status.active_seconds) == (90, 20)


def test_a_session_that_never_ran_has_nothing_to_count() -> None:
    assert meters.stopped(SessionStatus(), NOW, None) == {}


def test_time_without_a_pod_does_not_count() -> None:
    status = changed(
        SessionStatus(), {"phase": Phase.RUNNING, **meters.started(SessionStatus(), NOW)}
    )
    later = NOW + timedelta(seconds=5)
    status = changed(status, {"phase": Phase.PENDING, **meters.stopped(status, later, None)})
    ended = meters.stopped(status, later + timedelta(hours=3), None)
    assert ended["running_seconds"] == 5


def test_a_session_of_an_older_operator_is_counted_from_its_start() -> None:
    status = SessionStatus.model_validate({"phase": "Running", "startedAt": timestamp(NOW)})
    changes = meters.stopped(status, NOW + timedelta(seconds=7), None)
    assert changes["running_seconds"] == 7


def test_what_runs_is_activity_and_what_rests_is_not() -> None:
    status = changed(
        SessionStatus(), {"phase": Phase.RUNNING, **meters.started(SessionStatus(), NOW)}
    )
    at = NOW + timedelta(minutes=5)
    idle = Reading(at, timedelta(minutes=2), timedelta())
    assert meters.read(status, idle)["last_activity_time"] == timestamp(NOW + timedelta(minutes=3))
    busy = Reading(at, timedelta(minutes=2), timedelta(), running_calls=1)
    assert meters.read(status, busy)["last_activity_time"] == timestamp(at)
    # Idle since before the claim: since the claim.
    stale = Reading(at, timedelta(hours=2), timedelta())
    assert meters.read(status, stale)["last_activity_time"] == timestamp(NOW)
