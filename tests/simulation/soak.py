"""Runs schedules for as long as one likes: `python tests/simulation/soak.py --seconds 600`.

Prints each failure with its shrunk schedule as it is found, a line every few seconds, and ends
with code 1 when there was one.
"""

import argparse
import sys
import time

from simulation.schedule import FIRST_LONG
from simulation.simulate import explain, run

REPORT_EVERY_SECONDS = 30.0


def main() -> int:
    """Run until the time is over; the answer is the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=FIRST_LONG, help="the first seed")
    given = parser.parse_args()
    began = reported = time.monotonic()
    seed, failed = given.seed, 0
    while (now := time.monotonic()) < began + given.seconds:
        outcome = run(seed)
        if outcome.violations:
            failed += 1
            print(explain(seed, outcome), flush=True)
        seed += 1
        if now > reported + REPORT_EVERY_SECONDS:
            reported = now
            print(f"{seed - given.seed} schedules, {failed} failed", flush=True)
    print(f"{seed - given.seed} schedules, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
