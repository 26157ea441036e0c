"""The operator killed before and after each of its writes."""

import itertools
from collections.abc import Iterator

import pytest

from faults_operator.rig import Rig, Run
from faults_operator.script import everything

PARTS = 2
"""Of the enumeration, for two cores."""


def moments(part: int) -> Iterator[tuple[int, bool]]:
    """Number of a write, and whether it is answered: those of one part, without an end."""
    for number in itertools.count(1 + part, PARTS):
        yield number, False
        yield number, True


async def killed(rig: Rig, number: int, *, answered: bool) -> tuple[Run, list[str]]:
    """Run the script with an operator that is killed once; returns what is wrong."""
    run = Run(rig)
    try:
        async with run.running():
            run.kill_at(number, answered=answered)
            await everything(run)
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
        if run.struck is None:
            break
    assert number > 30, "the script makes more writes than that"
    assert not wrong, "\n".join(wrong)
