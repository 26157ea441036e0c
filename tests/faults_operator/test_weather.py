"""The operator behind an API server that fails in every way it can."""

import pytest

from faults_operator.proxy import Kind
from faults_operator.rig import Rig
from faults_operator.weather import storm

SEEDS = range(1, 5)


@pytest.mark.timeout(900)
async def test_everything_comes_about_after_faults(rig: Rig) -> None:
    for seed in SEEDS:
        run, problems = await storm(rig, seed)
        text = "\n".join(problems)
        assert not problems, f"seed {seed}; the operator's words are in {run.log}\n{text}"
    # Otherwise nothing is shown by it.
    assert len(rig.proxy.happened) > len(Kind) // 2, rig.proxy.happened
