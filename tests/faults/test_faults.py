"""A thousand calls through a network that breaks: each runs once, nothing is lost or repeated."""

import asyncio
import os
from pathlib import Path

import pytest

from faults.runs import planned, run, world
from faults.streams import impatient

SEED = int(os.environ.get("FAULT_SEED", "1"))
CALLS = 1000


def test_a_thousand_calls_over_a_network_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch.setattr)
    # FAULT_CALL=7 makes one call of the thousand again, by itself.
    only = os.environ.get("FAULT_CALL")
    numbers = [int(only)] if only else range(CALLS)
    with world(tmp_path) as place:
        report = asyncio.run(run(place, planned(SEED, numbers, scale=0.1)))
    print(report)
    assert not report.problems, "\n\n".join(report.problems)
    assert report.calls.total() == len(numbers)
