"""The operator killed before and after each of its writes."""

import itertools
from collections.abc import Awaitable, Callable, Iterator

import pytest

from faults_operator.rig import Rig, Run
from faults_operator.script import everything, one_answer

Script = Callable[[Run, Callable[[], None]], Awaitable[None]]
PARTS = 2
"""Of the enumeration, for two cores."""
ENOUGH = 3
"""Runs with something wrong, each of which may take a minute: more would say the same."""


def moments(part: int) -> Iterator[tuple[int, bool]]:
    """Number of a write, and whether it is answered: those of one part, without an end."""
    for number in itertools.count(1 + part, PARTS):
        yield number, False
        yield number, True


async def from_the_start(run: Run, begin: Callable[[], None]) -> None:
    """Everything."""
    begin()
    await everything(run)


async def killed(
    rig: Rig, number: int, *, answered: bool, script: Script = from_the_start
) -> tuple[Run, list[str]]:
    """Run a script with an operator that is killed once; returns what is wrong."""
    run = Run(rig)
    try:
        async with run.running():
            await script(run, lambda: run.kill_at(number, answered=answered))
    except AssertionError as error:
        return run, [str(error), *run.problems(), *run.left()]
    return run, run.problems()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
async def test_killed_before_and_after_each_write(rig: Rig, part: int) -> None:
    """Until a run ends before its operator has made so many writes."""
    wrong = []
    for number, answered in moments(part):
        run, problems = await killed(rig, number, answered=answered)
        when = "after" if answered else "before"
        if problems:
            wrong.append(f"killed {when} write {number}, {run.struck}: {problems}; see {run.log}")
        if run.struck is None or len(wrong) == ENOUGH:
            break
    assert not wrong, "\n".join(wrong)
    assert number > 30, "the script makes more writes than that"


CLAIM = 4
"""Writes from the call on: the Session, its pod, its status, and the first of the refill."""


@pytest.mark.timeout(600)
async def test_killed_while_a_call_is_answered(rig: Rig) -> None:
    """What the caller was told stays true, whoever writes it."""
    wrong = []
    for number, told in itertools.product(range(1, CLAIM + 1), (False, True)):
        run, problems = await killed(rig, number, answered=told, script=one_answer)
        assert run.struck is not None
        if problems:
            when = "after" if told else "before"
            wrong.append(f"killed {when} write {number}, {run.struck}: {problems}; see {run.log}")
    assert not wrong, "\n".join(wrong)
