"""These tests need root and the cluster's binaries, but no cluster."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cloister_operator import names
from faults_operator.admission import OPERATOR, PODS, admission_plane, ask, pod
from faults_operator.control_plane import ControlPlane
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """An API server with the chart's admission policies."""
    async with admission_plane(tmp_path_factory.mktemp("plane") / "plane") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def running(plane: ControlPlane) -> AsyncIterator[str]:
    """The path of a pod that is there."""
    body = pod("minimal")
    body["metadata"]["annotations"] = {names.EGRESS_HOSTS: "example.com"}
    body["metadata"].pop("ownerReferences", None)
    path = f"{PODS}/{body['metadata']['name']}"
    assert await ask(plane, OPERATOR, "POST", PODS, body) is None
    yield path
    await plane.admin.call("DELETE", f"{path}?gracePeriodSeconds=0")
