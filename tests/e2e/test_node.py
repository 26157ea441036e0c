"""A node that is lost: what only root on the node can bring about."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
    condition,
    get,
    kubectl,
    listing,
    wait_condition,
    wait_for,
    wait_phase,
)

pytestmark = pytest.mark.disruptive
ROOT = Path(__file__).resolve().parents[2]
NODE = "node1"
LOST = "cloister.dev/e2e-lost"
Make = Callable[..., str]
KEPT = {"persistent": True, "size": "64Mi"}


def devcluster(*args: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "devcluster" / "src")}
    subprocess.run(
        [sys.executable, "-m", "cloister_devcluster", *args], cwd=ROOT, env=env, check=True
    )


def events_of(name: str) -> list[str]:
    return [
        each["reason"] for each in listing("events") if each["involvedObject"].get("name") == name
    ]


def in_another_pod(name: str, lost: str) -> dict[str, Any]:
    """The Session, once it runs in another pod."""

    def look() -> dict[str, Any] | None:
        status = (get("session", name) or {}).get("status") or {}
        moved = status.get("phase") == "Running" and status["podName"] != lost
        return status if moved else None

    return wait_for(f"session {name} in another pod than {lost}", look, 180)


@pytest.fixture
def no_kubelet() -> Iterator[Callable[[], None]]:
    """The node's kubelet stops when this is called, and works again after the test."""

    def stop() -> None:
        devcluster("stop", "kubelet")

    yield stop
    kubectl("taint", "node", NODE, f"{LOST}-", check=False)
    devcluster("start", "kubelet")
    kubectl("wait", "node", NODE, "--for=condition=Ready", "--timeout=120s")
    kubectl(
        *("rollout", "status", "deployment/cloister-operator", "-n", "cloister-system"),
        "--timeout=3m",
    )


def test_a_node_that_does_not_answer(
    client: cloister.Client, environments: Make, no_kubelet: Callable[[], None]
) -> None:
    """Its pods stay until it answers again; sessions with a volume go on then, others failed."""
    kept = environments(workspace=KEPT)
    plain = environments()
    volume = client.create_session(kept)
    other = client.create_session(plain)
    volume.bash("echo kept > kept.txt")
    lost = volume.pod_name
    no_kubelet()
    # What Kubernetes does by itself five minutes after a node is not heard of any more.
    kubectl("taint", "node", NODE, f"{LOST}=true:NoExecute")

    waiting = wait_condition("session", volume.name, "Ready", "False")
    wait_for(
        "the volume in use",
        lambda: (
            condition(get("session", volume.name), "Ready")["reason"] == "WorkspaceInUse" or None
        ),
    )
    assert "NodeLost" in events_of(volume.name)
    assert waiting["status"]["phase"] == "Pending"
    failed = wait_phase(other.name, "Failed")
    assert condition(failed, "Ready")["reason"] == "NodeLost"
    assert get("pod", lost) is not None

    kubectl("taint", "node", NODE, f"{LOST}-")
    devcluster("start", "kubelet")
    in_another_pod(volume.name, lost)
    with client.get_session(volume.name) as again:
        assert again.bash("cat kept.txt").text == "kept"
    kubectl("delete", "session", volume.name, other.name, "-n", SANDBOXES)
