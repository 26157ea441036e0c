"""Weather and kills for as long as one likes, each round from the next seed; needs root.

python tests/faults_operator/soak.py --seconds 3600 --seed 100
"""

import argparse
import asyncio
import itertools
import random
import tempfile
import time
from pathlib import Path

from faults_operator.rig import Rig, rig
from faults_operator.test_kills import killed
from faults_operator.weather import storm

WRITES = 46
"""About as many as the script makes."""


async def _round(shared: Rig, seed: int) -> list[str]:
    if seed % 2:
        run, problems = await storm(shared, seed)
        what = f"weather, seed {seed}: {run.writes} writes"
    else:
        rng = random.Random(seed)
        number, answered = rng.randint(1, WRITES), rng.random() < 0.5
        run, problems = await killed(shared, number, answered=answered)
        what = f"killed {'after' if answered else 'before'} write {number}: {run.struck}"
    print(what, flush=True)
    return [f"{what}\n  " + "\n  ".join(problems)] if problems else []


async def soak(seconds: float, first: int) -> list[str]:
    """Run rounds until the time is over; returns the problems."""
    end, problems = time.monotonic() + seconds, []
    # Kept when something went wrong: the operators' words are in it.
    folder = Path(tempfile.mkdtemp(prefix="faults-operator-"))
    async with rig(folder) as shared:
        for seed in itertools.count(first):
            if time.monotonic() > end:
                break
            problems += await _round(shared, seed)
        print(f"{seed - first} rounds, {sum(shared.proxy.happened.values())} faults: ", end="")
        print(", ".join(f"{k.name} {n}" for k, n in sorted(shared.proxy.happened.items(), key=str)))
    print(f"logs: {folder}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    problems = asyncio.run(soak(given.seconds, given.seed))
    for each in problems:
        print(each)
    print(f"{len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
