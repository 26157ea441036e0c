"""A kind of write that always fails: it is tried ever more seldom, and nothing else in circles.

A policy of the platform is against it, a quota is used up, a watch does not tell that its object is
gone: that can last for hours, and the API server has others to serve.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cloister_operator.errors import (
    ConflictError,
    LostError,
    NotFoundError,
    OperatorError,
    PermanentError,
    QuotaError,
    RefusedError,
)
from simulation import actions, loop
from simulation.schedule import Step
from simulation.simulate import run
from support.fake_operator import Operator

pytestmark = pytest.mark.long

WRITES = (
    "create pods",
    "create secrets",
    "create persistentvolumeclaims",
    "patch pods",
    "patch persistentvolumeclaims",
    "patch sessions",
    "patch sessions/status",
    "patch environments/status",
    "apply networkpolicies",
    "delete pods",
    "delete secrets",
    "delete sessions",
)
ERRORS: tuple[Callable[[], OperatorError], ...] = (
    lambda: PermanentError("Rejected", "a policy is against it"),
    lambda: RefusedError("the API server refused: a quota is used up"),
    lambda: ConflictError("the object has been modified"),
    lambda: NotFoundError("there is no such object"),
    lambda: LostError("the API server answered 500"),
)
AT_ONCE, MOST_A_SECOND = 100, 5.0
"""Writes, those that fail included, of a few pods and half a dozen sessions."""
FATAL = ("logged", "loop", "an operator ended", "the operator goes", "more than", "nothing will")
"""How violations begin that are none of what simply does not come about."""


def _life(keeps: int, *, sessions: bool) -> tuple[Step, ...]:
    """What makes an operator write of everything; `keeps`: 24 for workspaces that persist."""
    pool = Step(0.0, "environment", keeps, 2)
    if not sessions:
        return pool, Step(20.0, "environment", keeps, 6)
    return (
        pool,
        Step(3.0, "session", 1, 1),
        Step(0.0, "session", 2, 5),
        Step(0.0, "call", 0, 0),
        Step(1.0, "call", 1, 0),
        Step(20.0, "environment", keeps, 6),
        Step(1.0, "suspend", 1, 0),
        Step(5.0, "resume", 1, 0),
        Step(1.0, "remove_session", 0, 0),
        Step(100.0, "call", 2, 0),
    )


@pytest.mark.parametrize("keeps", [0, 24], ids=["emptied", "kept"])
@pytest.mark.parametrize(
    "which",
    WRITES,
)
def test_a_write_that_always_fails_is_tried_seldom(which: str, keeps: int) -> None:
    tries = 0
    for make in ERRORS:

        def failing(operator: Operator, make: Callable[[], OperatorError] = make) -> None:
            connection = operator.connection
            write = connection._write

            async def fails(verb: str, plural: str, name: str, act: Callable[[], Any]) -> Any:
                nonlocal tries
                if f"{verb} {plural}" != which:
                    return await write(verb, plural, name, act)
                tries += 1
                await connection._travel()
                raise make()

            connection._write = fails  # type: ignore[method-assign]

        for sessions in (False, True):
            tries = 0
            outcome = run(5, _life(keeps, sessions=sessions), failing)
            assert not [each for each in outcome.violations if each.startswith(FATAL)], make()
            writes = tries + len(outcome.writes)
            # A session that is refused fails, for good reason, and ends the run: that is early.
            most = AT_ONCE + MOST_A_SECOND * outcome.seconds
            assert writes < most, f"{make()!r}: {tries} tries and {writes - tries} other writes"


HALF_A_DAY = 43_200.0
"""Seconds: more than a thousand attempts, thirty seconds apart."""
LATE = Step(HALF_A_DAY + 100, "call", 2, 0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is out of order stays so for half a day."""
    monkeypatch.setattr(actions, "_HELD_FOR", (HALF_A_DAY,) * 4)
    monkeypatch.setattr(loop, "MOST_CALLBACKS", 10_000_000)


@pytest.mark.usefixtures("patient")
def test_an_api_server_may_be_away_for_half_a_day() -> None:
    away = Step(3.0, "away", 0, 0)
    assert run(5, (*_life(0, sessions=True)[:4], away, LATE)).violations == ()


@pytest.mark.usefixtures("patient")
def test_a_quota_may_be_used_up_for_half_a_day() -> None:
    def used_up(operator: Operator) -> None:
        connection = operator.connection
        write = connection._write

        async def fails(verb: str, plural: str, name: str, act: Callable[[], Any]) -> Any:
            made = (verb, plural) == ("create", "pods")
            if made and asyncio.get_running_loop().time() < HALF_A_DAY:
                await connection._travel()
                raise QuotaError("exceeded quota: a", "a")
            return await write(verb, plural, name, act)

        connection._write = fails  # type: ignore[method-assign]

    assert run(5, (*_life(0, sessions=True)[:4], LATE), used_up).violations == ()
