"""Fixtures of the end-to-end tests: a cluster with Cloister installed, named by KUBECONFIG."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cloister
from cloister_devcluster import places
from cloister_devcluster.node import holder
from support.cluster import (
    SANDBOXES,
    Result,
    apply,
    environment,
    kubectl,
    wait_condition,
    wait_gone,
)
from support.fake_internet import FakeInternet, fake_internet


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session", autouse=True)
def safe_context() -> None:
    """Refuse a cluster that is not the bundled one, unless it is named on purpose."""
    config = json.loads(kubectl("config", "view", "--minify", "-o", "json").out)
    context = config["current-context"]
    allowed = os.environ.get("CLOISTER_E2E_CONTEXT", "cloister")
    assert context == allowed, f"refusing the kube context {context}: set CLOISTER_E2E_CONTEXT"


@pytest.fixture(name="kubectl", scope="session")
def kubectl_fixture() -> Callable[..., Result]:
    """kubectl, as a function."""
    return kubectl


@pytest.fixture(scope="session")
def namespace() -> str:
    """The namespace of the sandboxes."""
    return SANDBOXES


@pytest.fixture
def name() -> str:
    """A name nobody else uses."""
    return f"t-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def environments() -> Iterator[Callable[..., str]]:
    """Make Environments that are Ready; they are gone, with their pods, after the module."""
    made: list[str] = []

    def make(**spec: Any) -> str:
        name = f"e-{secrets.token_hex(4)}"
        made.append(name)
        apply(environment(name, **spec))
        wait_condition("environment", name, "Ready")
        return name

    yield make
    for each in made:
        kubectl(
            "delete", "environment", each, "-n", SANDBOXES, "--wait=false", "--ignore-not-found"
        )
    for each in made:
        wait_gone("environment", each)


@pytest.fixture(scope="module")
def client() -> Iterator[cloister.Client]:
    """The client library, from outside the cluster."""
    with cloister.Client(namespace=SANDBOXES) as made:
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeInternet]:
    """A fake internet around the bundled cluster."""
    node = holder(places.here())
    assert node is not None, "these tests need the bundled cluster"
    with fake_internet(node, tmp_path_factory.mktemp("world") / "files") as made:
        yield made
