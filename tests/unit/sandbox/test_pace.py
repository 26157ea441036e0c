"""Small calls go before the pieces of transfers, and never stop them."""

import asyncio

import pytest

from cloister_sandbox import pace
from cloister_sandbox.pace import LONGEST, QUICK, QUIET, Pace


class Clock:
    """The time as `Pace` sees it; it passes only while something sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.calls: Pace | None = None

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        if self.calls is not None:
            self.calls.__enter__()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(pace, "asyncio", clock)
    clock.Lock = asyncio.Lock  # type: ignore[attr-defined]
    return clock


async def test_without_calls_nothing_waits(clock: Clock) -> None:
    own = Pace()
    await own.turn()
    assert clock.slept == []


async def test_a_piece_waits_until_it_is_quiet(clock: Clock) -> None:
    own = Pace()
    with own:
        pass
    await own.turn()
    assert clock.slept == [pytest.approx(QUIET)]
    await own.turn()
    assert len(clock.slept) == 1


async def test_a_call_that_goes_on_is_not_waited_for_any_more(clock: Clock) -> None:
    own = Pace()
    with own:
        clock.now += QUICK
        await own.turn()
        assert clock.slept == []


async def test_calls_without_end_slow_transfers_down_only(clock: Clock) -> None:
    own = clock.calls = Pace()
    own.__enter__()
    for number in range(1, 6):
        await own.turn()
        assert clock.now == pytest.approx(100 + number * LONGEST)


async def test_many_transfers_share_what_is_left(clock: Clock) -> None:
    own = clock.calls = Pace()
    own.__enter__()
    await asyncio.gather(*(own.turn() for _ in range(8)))
    assert clock.now == pytest.approx(100 + 8 * LONGEST)
