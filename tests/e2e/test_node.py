"""A node that is lost, and a server without memory: what only root on the node can bring about."""

import os
import re
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
MANY_SMALL = """
for each in $(seq 60); do python3 -c 'import time; a = bytearray(4 << 20); time.sleep(50)' & done
wait
"""
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


def server_of(pod_name: str) -> Path:
    """The /proc folder of a sandbox's exec server, which is the first process of its container."""
    pod = get("pod", pod_name)
    assert pod is not None
    uid = pod["metadata"]["uid"]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            inside = uid in (folder / "cgroup").read_text().replace("_", "-")
            first = re.search(r"^NSpid:.*\s1$", (folder / "status").read_text(), re.MULTILINE)
            if inside and first and b"cloister_sandbox" in (folder / "cmdline").read_bytes():
                return folder
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"no exec server of pod {pod_name}")


def in_another_pod(name: str, lost: str) -> dict[str, Any]:
    """The Session, once it runs in another pod than that of the UID `lost`."""

    def look() -> dict[str, Any] | None:
        status = (get("session", name) or {}).get("status") or {}
        moved = status.get("phase") == "Running" and status["podUID"] != lost
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


@pytest.mark.parametrize("workspace", [{}, KEPT], ids=["ephemeral", "persistent"])
def test_a_server_without_memory(
    client: cloister.Client, environments: Make, workspace: dict[str, Any]
) -> None:
    env = environments(
        resources={"memory": "128Mi"}, **({"workspace": workspace} if workspace else {})
    )
    with client.create_session(env) as made:
        made.bash("echo kept > kept.txt")
        lost = (get("pod", made.pod_name) or {})["metadata"]["uid"]
        # The kernel chooses tools first; only root on the node can turn that round. Then it chooses
        # the largest process, and these are all smaller than the server.
        (server_of(made.pod_name) / "oom_score_adj").write_text("1000")
        with pytest.raises(cloister.CloisterError):
            made.bash(MANY_SMALL, timeout_ms=60000)
        if workspace:
            assert in_another_pod(made.name, lost)["restarts"] == 1
            assert "OOMKilled" in events_of(made.name)
            with client.get_session(made.name) as again:
                assert again.bash("cat kept.txt").text == "kept"
        else:
            failed = wait_phase(made.name, "Failed")
            assert condition(failed, "Ready")["reason"] == "OOMKilled"


def test_a_node_that_does_not_answer(
    client: cloister.Client, environments: Make, no_kubelet: Callable[[], None]
) -> None:
    """Its pods stay until it answers again; sessions with a volume go on then, others failed."""
    kept = environments(workspace=KEPT)
    plain = environments()
    volume = client.create_session(kept)
    other = client.create_session(plain)
    volume.bash("echo kept > kept.txt")
    lost, uid = volume.pod_name, (get("session", volume.name) or {})["status"]["podUID"]
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
    in_another_pod(volume.name, uid)
    with client.get_session(volume.name) as again:
        assert again.bash("cat kept.txt").text == "kept"
    kubectl("delete", "session", volume.name, other.name, "-n", SANDBOXES)
