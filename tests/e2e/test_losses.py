"""Pods that are lost or cannot start: each loss has its reason, and what persists comes back."""

from collections.abc import Callable

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
    apply,
    condition,
    environment,
    get,
    kubectl,
    session,
    wait_for,
    wait_gone,
    wait_phase,
    wait_reason,
)

Make = Callable[..., str]
KEPT = {"persistent": True, "size": "64Mi"}
ALL_OF_IT = (
    # Many processes, so that whichever the kernel ends, the next one is on its way; with the
    # server's own group, since that is what is killed when the pod's memory ends.
    'python3 -c "a=[]\nwhile True: a.append(bytearray(8<<20))"'
)


@pytest.fixture
def unready() -> "Callable[..., str]":
    """Apply an Environment without waiting for it; the test deletes it."""

    def make(name: str, **spec: object) -> str:
        apply(environment(name, **spec))
        return name

    return make


def gone(*names: str) -> None:
    """Delete Environments and the sessions of their names."""
    for name in names:
        kubectl("delete", "session,environment", name, "-n", SANDBOXES, "--ignore-not-found")
    for name in names:
        wait_gone("environment", name)


def recovered(name: str, lost: str) -> dict[str, object]:
    """The Session, once it runs in another pod than that of the UID `lost`."""

    def look() -> dict[str, object] | None:
        found = get("session", name)
        assert found is not None
        status = found["status"]
        return found if status["phase"] == "Running" and status["podUID"] != lost else None

    return wait_for(f"session {name} in another pod than {lost}", look, 120)


def test_a_tool_without_memory_leaves_the_session(
    client: cloister.Client, environments: Make
) -> None:
    env = environments(resources={"memory": "192Mi"})
    with client.create_session(env) as made:
        result = made.bash(ALL_OF_IT)
        assert result.is_error
        assert made.bash("echo alive").text == "alive"
        status = (get("session", made.name) or {})["status"]
        assert (status["phase"], status.get("restarts", 0)) == ("Running", 0)


def test_a_deleted_pod_comes_back_on_its_workspace(
    client: cloister.Client, environments: Make
) -> None:
    env = environments(workspace=KEPT, pool={"size": 1})
    with client.create_session(env) as made:
        made.bash("echo kept > kept.txt; touch private; chmod 600 private; ln -s kept.txt link")
        lost = (get("session", made.name) or {})["status"]["podUID"]
        kubectl("delete", "pod", made.pod_name, "-n", SANDBOXES)
        found = recovered(made.name, lost)
        assert condition(found, "Ready")["reason"] == "Resumed"
        with client.get_session(made.name) as again:
            assert again.bash("cat link; stat -c %a private").text == "kept\n600"


def test_an_evicted_pod(client: cloister.Client, environments: Make) -> None:
    """Through the eviction API, as `kubectl drain` does it."""
    with client.create_session(environments()) as made:
        eviction = (
            '{"apiVersion":"policy/v1","kind":"Eviction","metadata":'
            f'{{"name":"{made.pod_name}","namespace":"{SANDBOXES}"}}}}'
        )
        path = f"/api/v1/namespaces/{SANDBOXES}/pods/{made.pod_name}/eviction"
        kubectl("create", "--raw", path, "-f", "-", stdin=eviction)
        failed = wait_phase(made.name, "Failed")
        assert condition(failed, "Ready")["reason"] == "Evicted"
        wait_gone("pod", made.pod_name)
        with pytest.raises(cloister.CloisterError):
            made.bash("true")


def test_a_full_disk_evicts(client: cloister.Client, environments: Make) -> None:
    """The kubelet measures emptyDirs, and evicts a pod that outgrew one."""
    env = environments(workspace={"size": "16Mi"})
    with client.create_session(env) as made:
        made.bash("head -c 40M /dev/zero > big")
        failed = wait_phase(made.name, "Failed", 150)
        assert condition(failed, "Ready")["reason"] == "DiskFull"
        assert "disk" in condition(failed, "Ready")["message"]


def test_an_image_that_is_not_there(unready: Callable[..., str], name: str) -> None:
    unready(name, image="localhost/cloister/no-such-image:1")
    try:
        found = wait_reason("environment", name, "PoolReady", ("ImagePullFailed",), 120)
        assert "no-such-image" in found["message"]
        apply(session(name, name))
        waiting = wait_reason("session", name, "Ready", ("ImagePullFailed",), 120)
        assert waiting["status"] == "False"
        assert (get("session", name) or {})["status"]["phase"] == "Pending"
    finally:
        gone(name)


@pytest.mark.parametrize(
    ("storage_class", "words"),
    # The first one's words are those of an event, the other's the scheduler's.
    [("no-such-class", '"no-such-class" not found'), ("e2e-never", "unbound")],
)
def test_a_volume_that_is_never_bound(
    unready: Callable[..., str], name: str, storage_class: str, words: str
) -> None:
    if storage_class == "e2e-never":
        apply(
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": storage_class},
                "provisioner": "cloister.dev/nobody",
                "volumeBindingMode": "Immediate",
            }
        )
    unready(name, workspace={**KEPT, "storageClassName": storage_class}, pool={"size": 0})
    try:
        apply(session(name, name))

        def said() -> bool | None:
            found = condition(get("session", name), "Ready")
            telling = words in found.get("message", "")
            return True if found.get("reason") == "VolumeNotBound" and telling else None

        wait_for(f"VolumeNotBound: {words}", said, 120)
        assert (get("session", name) or {})["status"]["phase"] == "Pending"
        kubectl("delete", "session", name, "-n", SANDBOXES)
        wait_gone("session", name)
    finally:
        gone(name)


def test_a_pod_that_no_node_takes(unready: Callable[..., str], name: str) -> None:
    unready(name, scheduling={"nodeSelector": {"no-such-label": "true"}})
    try:
        found = wait_reason("environment", name, "PoolReady", ("Unschedulable",))
        assert "node" in found["message"]
    finally:
        gone(name)
