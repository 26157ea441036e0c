"""The fault and fuzz tests for as long as one likes, each round from the next seed.

python tests/faults/soak.py --seconds 3600 --seed 1
python tests/faults/soak.py --seed 17 --call 623     one call of a round again, by itself
"""

import argparse
import asyncio
import contextlib
import itertools
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cloister_api.exec.v1 import exec_pb2
from faults.fuzzing import Fuzzer, methods
from faults.runs import Report, planned, run, world
from faults.streams import impatient
from support.sandbox_server import sandbox

CALLS = 1000
EXAMPLES = 100
SCALE = 1.0


def faults(seed: int, numbers: Sequence[int]) -> Report:
    """One run over a network that breaks, on a server of its own."""
    with tempfile.TemporaryDirectory() as directory, world(Path(directory)) as place:
        return asyncio.run(run(place, planned(seed, numbers, SCALE)))


def fuzz(seed: int, statuses: Counter[str]) -> list[str]:
    """Every method in turn, then all at once, on a server of its own; returns what went wrong."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        server = stack.enter_context(sandbox(Path(directory) / "sandbox"))
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        fuzzer = Fuzzer(server, stack.enter_context(server.worker()))
        steps: list[Callable[[], None]] = [
            *(partial(fuzzer.fuzz, method, EXAMPLES, seed) for method in methods()),
            partial(fuzzer.fuzz_at_once, EXAMPLES, seed),
            fuzzer.close_everything,
        ]
        for step in steps:
            fuzzer.furnish()
            try:
                step()
            except Exception:
                problems.append(f"fuzz seed {seed}: {traceback.format_exc(limit=-3)[:4000]}")
        statuses += fuzzer.statuses
        print(f"fuzz seed {seed}: {fuzzer.calls} calls, {fuzzer.resident() >> 20} MiB resident")
    return problems


def main() -> int:
    """Run rounds until the time is over; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=3600, help="how long; one round at least")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--call", type=int, help="only this call of the fault run of the seed")
    given = parser.parse_args()
    impatient()
    if given.call is not None:
        report = faults(given.seed, [given.call])
        print(report, *report.problems, sep="\n")
        return bool(report.problems)
    end = time.monotonic() + given.seconds
    total, statuses = Report(), Counter[str]()
    began = time.monotonic()
    for seed in itertools.count(given.seed):
        report = faults(seed, range(CALLS))
        print(f"faults seed {seed}: {report}")
        report.problems += fuzz(seed, statuses)
        print(*report.problems, sep="\n", end="\n" if report.problems else "", flush=True)
        total.add(report)
        if time.monotonic() >= end:
            break
    by_code: Counter[str] = Counter()
    for name, count in statuses.items():
        by_code[name.split()[1]] += count
    print(f"\nseeds {given.seed} to {seed}, {time.monotonic() - began:.0f} s\nfaults: {total}")
    print(f"fuzz: {statuses.total()} calls: {dict(by_code.most_common())}")
    for each in total.problems:
        print(each.splitlines()[0][:200])
    return bool(total.problems)


if __name__ == "__main__":
    raise SystemExit(main())
