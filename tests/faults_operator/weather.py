"""What goes wrong between an operator and its API server, drawn from a seed."""

import math
import random

from faults_operator.proxy import Call, Fault, Kind
from faults_operator.rig import Rig, Run
from faults_operator.script import everything

FAULTS = 30
"""Of one run; then nothing goes wrong any more."""
_OF_WATCHES = (
    Kind.HOLD,
    Kind.HOLD,
    Kind.CUT,
    Kind.CUT,
    Kind.GONE,
    Kind.BUSY,
    Kind.AWAY,
    Kind.RESET,
)
_OF_READS = (Kind.BUSY, Kind.BROKEN, Kind.AWAY, Kind.RESET, Kind.DELAY, Kind.LATE)
_OF_WRITES = (*_OF_READS, Kind.LOST, Kind.LOST)
_UNSURE = (Kind.LOST, Kind.STALL, Kind.DELAY, Kind.LATE)
"""Faults that may make a pool larger than it is asked to be, by a pod each."""
STALL_SECONDS = 20.0
"""Longer than the operator waits for an answer."""


class Weather:
    """Chooses faults."""

    def __init__(self, run: Run, seed: int, faults: int = FAULTS) -> None:
        self._run = run
        self._rng = random.Random(seed)
        self._left = faults
        self._share = self._rng.uniform(0.05, 0.4)
        self.said: list[str] = []
        """What went wrong, in its order."""

    def choose(self, call: Call) -> Fault | None:
        """What goes wrong with a call."""
        if not self._left or self._rng.random() >= self._share:
            return None
        self._left -= 1
        fault = self._draw(call)
        if fault.kind in _UNSURE:
            self._run.invariants.refills += 1
        self.said.append(f"{call}: {fault.kind.name} {fault.seconds:.1f}")
        return fault

    def _draw(self, call: Call) -> Fault:
        rng = self._rng
        if call.watch:
            kind = rng.choice(_OF_WATCHES)
            return Fault(kind, rng.uniform(0.1, 5.0))
        if rng.random() < 0.02:
            return Fault(Kind.STALL, STALL_SECONDS)
        if call.method in ("PATCH", "DELETE") and rng.random() < 0.15:
            return Fault(Kind.CONFLICT)
        kind = rng.choice(_OF_READS if call.method == "GET" else _OF_WRITES)
        # Short ones are as frequent as long ones.
        return Fault(kind, math.exp(rng.uniform(math.log(0.1), math.log(10.0))))


async def storm(rig: Rig, seed: int) -> tuple[Run, list[str]]:
    """Run the script in the weather of a seed; returns what is wrong."""
    run = Run(rig)
    weather = Weather(run, seed)
    try:
        async with run.running():
            run.count()
            rig.proxy.choose = weather.choose
            await everything(run)
            problems = run.problems()
    except AssertionError as error:
        problems = [str(error), *run.problems(), *run.left()]
    return run, [*problems, *weather.said] if problems else []
