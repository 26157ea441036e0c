"""The API server's clock, as its answers tell it."""

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from cloister_operator.cluster.clock import ServerClock
from cloister_operator.metrics import REGISTRY

NOW = datetime(2026, 5, 1, 12, 0, 0, 700_000, UTC)
SECOND = timedelta(seconds=1)


class Machine:
    """A machine with a clock of its own, beside an API server."""

    def __init__(self, ahead: timedelta = timedelta()) -> None:
        self.true, self.ahead = NOW, ahead
        self.clock = ServerClock(lambda: self.true + self.ahead)

    def asks(self, there: float = 0.0, back: float = 0.0) -> None:
        """A call that takes so many seconds there, and so many back."""
        asked = self.clock.own()
        self.true += timedelta(seconds=there)
        date = format_datetime(self.true.replace(microsecond=0), usegmt=True)
        self.true += timedelta(seconds=back)
        self.clock.heard(date, asked)

    @property
    def error(self) -> timedelta:
        return abs(self.clock() - self.true)


def test_a_clock_that_is_right_is_left_alone_however_long_answers_take() -> None:
    machine = Machine()
    for step in range(50):
        machine.asks(there=0.07 * (step % 3), back=3.0 * (step % 2))
        assert machine.error == timedelta()
        machine.true += timedelta(milliseconds=130)


@pytest.mark.parametrize("ahead", [-3600, -40, -2, 2, 40, 3600])
def test_one_that_is_wrong_is_put_right(ahead: int) -> None:
    machine = Machine(timedelta(seconds=ahead))
    machine.asks()
    assert machine.error <= SECOND
    for _ in range(20):
        machine.asks(there=0.002, back=0.001)
        machine.true += timedelta(milliseconds=470)
    assert machine.error < timedelta(milliseconds=100)
    found = REGISTRY.get_sample_value("cloister_clock_offset_seconds")
    assert found is not None
    assert abs(found + ahead) < 1


def test_one_that_is_put_right_by_somebody_is_followed() -> None:
    machine = Machine(timedelta(seconds=-600))
    machine.asks()
    machine.ahead = timedelta()
    machine.asks()
    assert machine.error <= SECOND


def test_a_slow_answer_moves_it_no_further_than_it_must() -> None:
    machine = Machine(timedelta(seconds=20))
    machine.asks(there=30)
    assert machine.error == 20 * SECOND
    machine.asks(there=3)
    assert machine.error <= 4 * SECOND


@pytest.mark.parametrize("date", [None, "", "yesterday", "2026-05-01T12:00:00Z"])
def test_what_is_no_date_says_nothing(date: str | None) -> None:
    clock = ServerClock(lambda: NOW)
    clock.heard(date, NOW)
    assert clock() == NOW


def test_a_clock_that_was_put_back_during_a_call_says_nothing() -> None:
    clock = ServerClock(lambda: NOW)
    clock.heard(format_datetime(NOW, usegmt=True), NOW + timedelta(minutes=1))
    assert clock() == NOW


def test_a_clock_that_is_off_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(timedelta(seconds=-61))
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            machine.asks()
    assert [each.getMessage() for each in caplog.records] == [
        "the API server's clock is +60 s from this machine's, and counts here"
    ]
