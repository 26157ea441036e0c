"""Fixtures and the count of the attack suite, which runs on the node of the bundled cluster.

`scripts/redteam.py` starts it there: sandboxes under gVisor are reached by their addresses alone.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloister
from cloister_devcluster import places
from cloister_devcluster.node import holder
from redteam.attacks import AttackSucceeded
from redteam.sandboxes import NAMED, OPEN, SEALED, STRICT, Sandboxes
from redteam.targets import Targets, bystander, find
from support.fake_internet import FakeInternet, fake_internet, node_of
from support.fake_internet_names import OTHERS

VICTIM = STRICT.with_network("victim", {"allowedHosts": [OTHERS]})
_count = {"tried": 0, "succeeded": 0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/redteam/" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.redteam)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # fmt: skip
    report = yield
    if call.when == "call" and item.get_closest_marker("attack"):
        _count["tried"] += 1
        if call.excinfo is not None and call.excinfo.errisinstance(AttackSucceeded):
            _count["succeeded"] += 1
    return report


def pytest_sessionfinish() -> None:
    told = os.environ.get("CLOISTER_REDTEAM_COUNT")
    if told:
        Path(told).write_text(f"attacks: {_count['tried']} tried, {_count['succeeded']} succeeded")


@pytest.fixture(scope="session")
def node() -> int:
    """The host's PID of the process that holds the bundled cluster's node."""
    found = holder(places.here())
    assert found is not None, "the bundled cluster does not run"
    here = node_of(found) == node_of("self")
    assert here, "the attack suite runs on the node: start it by scripts/redteam.py"
    return found


@pytest.fixture(scope="session")
def world(node: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeInternet]:
    """The internet, as far as the cluster knows."""
    with fake_internet(node, tmp_path_factory.mktemp("world") / "files") as made:
        yield made


@pytest.fixture(scope="session")
def sandboxes(world: FakeInternet) -> Iterator[Sandboxes]:
    """Sessions of every kind, and whatever else the tests make; all of it goes at the end."""
    with contextlib.ExitStack() as held:
        yield Sandboxes(held)


@pytest.fixture(scope="session")
def targets(node: int, sandboxes: Sandboxes) -> Iterator[Targets]:
    """What the attackers aim at."""
    with bystander():
        yield find(sandboxes.of(VICTIM), node)


@pytest.fixture(params=[*SEALED, *NAMED], ids=lambda each: each.name)
def closed(request: pytest.FixtureRequest, sandboxes: Sandboxes) -> cloister.Session:
    """A sandbox of each kind that may reach nothing directly."""
    return sandboxes.of(request.param)


@pytest.fixture(params=SEALED, ids=lambda each: each.name)
def sealed(request: pytest.FixtureRequest, sandboxes: Sandboxes) -> cloister.Session:
    """A sandbox of each kind that may reach nothing."""
    return sandboxes.of(request.param)


@pytest.fixture(params=NAMED, ids=lambda each: each.name)
def named(request: pytest.FixtureRequest, sandboxes: Sandboxes) -> cloister.Session:
    """A sandbox of each kind that may reach a few names."""
    return sandboxes.of(request.param)


@pytest.fixture(params=OPEN, ids=lambda each: each.name)
def unrestricted(request: pytest.FixtureRequest, sandboxes: Sandboxes) -> cloister.Session:
    """A sandbox of each kind that may reach the internet."""
    return sandboxes.of(request.param)
