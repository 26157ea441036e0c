"""Sessions under gVisor beside ordinary ones: the platform chose user namespaces for each class."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cloister
from cloister_devcluster import places
from cloister_devcluster.node import holder
from support.cluster import apply, environment, get, kubectl, wait_gone, wait_reason

GVISOR = {"runtimeClassName": "gvisor"}
WORKER = Path(__file__).with_name("worker_on_node.py")
Pair = tuple["cloister.Session", "cloister.Session"]


@pytest.fixture(scope="module")
def pair(client: cloister.Client, environments: Callable[..., str]) -> Iterator[Pair]:
    """A session under gVisor, and one under the node's own runtime."""
    with (
        client.create_session(environments(isolation=GVISOR)) as held,
        client.create_session(environments()) as ordinary,
    ):
        yield held, ordinary


def host_users(session: "cloister.Session") -> bool:
    pod = get("pod", session.pod_name)
    assert pod is not None
    found: bool = pod["spec"]["hostUsers"]
    return found


def test_each_class_has_its_user_namespaces(pair: Pair) -> None:
    held, ordinary = pair
    assert (host_users(held), host_users(ordinary)) == (True, False)
    for each in pair:
        found = get("session", each.name)
        assert found is not None
        assert found["status"]["phase"] == "Running"


def on_node(*arguments: str) -> None:
    """Run a worker on the node: what the API server forwards ends before gVisor's own network."""
    node = holder(places.here())
    assert node is not None
    command = ("nsenter", f"--target={node}", "--net", "--", sys.executable, str(WORKER))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, *arguments], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_tools_work_under_gvisor(environments: Callable[..., str]) -> None:
    on_node("tools", environments(isolation=GVISOR))


def test_a_workspace_persists_under_gvisor(environments: Callable[..., str]) -> None:
    kept = {"persistent": True, "size": "64Mi"}
    on_node("suspension", environments(isolation=GVISOR, workspace=kept, pool={"size": 0}))


def test_a_class_that_the_platform_does_not_allow(name: str) -> None:
    apply(environment(name, isolation={"runtimeClassName": "kata"}))
    found = wait_reason("environment", name, "Ready", ("PolicyRefused",))
    assert "gvisor" in found["message"]
    kubectl("delete", "environment", name, "-n", "cloister-sandboxes")
    wait_gone("environment", name)
