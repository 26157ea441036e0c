"""These tests need root and the cluster's binaries, but no cluster."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faults_operator.rig import Rig
from faults_operator.rig import rig as make_rig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A real API server, and what stands between it and operators."""
    async with make_rig(tmp_path) as made:
        yield made
