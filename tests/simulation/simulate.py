"""Runs a schedule from its first step until everything asked for has come about."""

import asyncio
import contextlib
import logging
import random
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from unittest import mock

from cloister_operator.controller import prover
from cloister_operator.errors import OperatorError
from simulation.actions import Actions
from simulation.expectations import unmet
from simulation.loop import Deadlock, Runaway, SimulatedLoop
from simulation.schedule import Step, draw, limit, shrink
from simulation.world import SimWorld
from support.fake_operator import Operator

CONVERGED_WITHIN = 400.0
"""Virtual seconds after the last fault. A resync is due every minute, and a key that failed often
waits for half a minute; a claim that lost its pod goes through both twice.
"""
HEARD_SECONDS = 70.0
"""After a resync each of two operators knows what the other one did. One that was away may have
wanted more pods before that than there are now, and wants them still.
"""
QUIET_SECONDS = 130.0
"""Two resyncs: an operator that has nothing to do writes nothing."""
MOST_WRITES = 3000
"""Of one schedule: an operator that writes in circles is stopped."""

Change = Callable[[Operator], None]
_LOG = logging.getLogger("cloister_operator")


@dataclass(frozen=True)
class Outcome:
    """What became of a schedule."""

    violations: tuple[str, ...]
    writes: tuple[str, ...]
    """Every write that the API server accepted from an operator."""
    seconds: float
    """Virtual time it took."""


class _Errors(logging.Handler):
    """An error that nobody expected is a violation; that schedules open networks is expected."""

    def __init__(self, world: SimWorld) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == prover.__name__:
            return
        error = record.exc_info[1] if record.exc_info else ""
        if not isinstance(error, OperatorError):
            self._world.invariants.violated(f"logged: {record.getMessage()} {error!r}")


@contextlib.contextmanager
def _determined(rng: random.Random, world: SimWorld) -> Iterator[None]:
    """Whatever is random in the operator comes from the seed; nothing is printed."""
    handler = _Errors(world)
    before = random.getstate(), _LOG.level, _LOG.propagate
    random.seed(rng.random())
    _LOG.setLevel(logging.ERROR)
    _LOG.propagate = False
    _LOG.addHandler(handler)

    def token_hex(size: int = 32) -> str:
        return rng.randbytes(size).hex()

    try:
        with mock.patch.object(secrets, "token_hex", token_hex):
            yield
    finally:
        _LOG.removeHandler(handler)
        random.setstate(before[0])
        _LOG.setLevel(before[1])
        _LOG.propagate = before[2]


def run(
    seed: int,
    steps: Sequence[Step] | None = None,
    change: Change | None = None,
    most: int | None = None,
) -> Outcome:
    """Run the schedule of a seed, or other steps with the chances of that seed.

    `change` is called with each operator when it starts, to make something wrong with it. `most`:
    sessions that the platform allows in a namespace; without it as the seed has it, and any number
    for other steps.
    """
    rng = random.Random(f"world {seed}")
    loop = SimulatedLoop(rng)
    if most is None:
        most = limit(seed) if steps is None else 0
    world = SimWorld(rng, loop, most)
    loop.set_exception_handler(
        lambda _, context: world.invariants.violated(f"loop: {context.get('exception')!r}")
    )
    with _determined(rng, world):
        try:
            main = loop.create_task(_main(world, draw(seed) if steps is None else steps, change))
            try:
                loop.run_until_complete(main)
            except Deadlock:
                world.invariants.violated("nothing will ever happen any more")
            except Runaway:
                world.invariants.violated("the operator goes round in circles")
            violations = tuple(world.invariants.violations)
            seconds = loop.time()
        finally:
            _end(loop)
    writes = tuple(f"{each.verb} {each.plural} {each.name}" for each in world.cluster.writes)
    return Outcome(violations, writes, seconds)


def _end(loop: SimulatedLoop) -> None:
    loop.set_exception_handler(lambda _loop, _context: None)
    loop.ending = True
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def _main(world: SimWorld, steps: Sequence[Step], change: Change | None) -> None:
    actions = Actions(world, change)
    invariants = world.invariants
    for step in steps:
        await asyncio.sleep(step.after)
        if invariants.violations:
            return
        actions.do(step)
    actions.heal()
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + CONVERGED_WITHIN, 0.1
    heard = loop.time() + (HEARD_SECONDS if world.doubled else 0.0)
    while True:
        await asyncio.sleep(pause)
        actions.check()
        if len(world.cluster.writes) > MOST_WRITES:
            invariants.violated(f"more than {MOST_WRITES} writes")
        if invariants.violations:
            return
        missing = list(unmet(world)) or actions.unanswered()
        if not missing and loop.time() >= heard:
            break
        if loop.time() > deadline:
            invariants.violated(f"not within {CONVERGED_WITHIN:.0f} s: {'; '.join(missing)}")
            return
        pause = min(10.0, pause * 1.5)
    if not actions.lively():
        await _quiet(world)
        for each in actions.remembered():
            invariants.violated(each)


async def _quiet(world: SimWorld) -> None:
    # What is only for people to read may wait for the next resync.
    await asyncio.sleep(QUIET_SECONDS / 2)
    before = len(world.cluster.writes)
    await asyncio.sleep(QUIET_SECONDS)
    # Policies are applied again and again, which changes nothing.
    since = [each for each in world.cluster.writes[before:] if each.verb != "apply"]
    if since:
        world.invariants.violated(f"writes though there is nothing to do: {since[:5]}")


def explain(seed: int, outcome: Outcome, change: Change | None = None) -> str:
    """What went wrong with a seed, and the shortest schedule found that goes wrong as well."""

    def fails(steps: Sequence[Step]) -> bool:
        found = run(seed, steps, change, limit(seed)).violations
        return bool(found) and _kind(found[0]) == _kind(outcome.violations[0])

    steps = shrink(draw(seed), fails)
    shrunk = run(seed, steps, change, limit(seed))
    lines = [
        f"seed {seed}: {'; '.join(outcome.violations)}",
        f"shrunk to {len(steps)} steps: {'; '.join(shrunk.violations)}",
        *map(str, steps),
        f"again: pytest tests/simulation --seed {seed}",
    ]
    return "\n".join(lines)


def _kind(violation: str) -> str:
    """A violation without the names in it and what follows a colon."""
    return re.sub(r"\S*\d\S*", "", violation).partition(":")[0]


def first_failure(seeds: Sequence[int], change: Change | None = None) -> str | None:
    """Run the schedules of seeds up to the first that goes wrong: its explanation."""
    one = partial(run, change=change)
    for seed in seeds:
        outcome = one(seed)
        if outcome.violations:
            return explain(seed, outcome, change)
    return None
