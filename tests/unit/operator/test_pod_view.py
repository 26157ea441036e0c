"""Why a pod ended, goes or does not start: each cause has a reason of its own."""

from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.api.pod import PodView, view

JSON = dict[str, Any]


def seen(status: JSON, annotations: JSON | None = None, **spec: Any) -> PodView:
    metadata = {
        "annotations": annotations,
        "namespace": "sandboxes",
        "name": "p1",
        "uid": "u1",
        "resourceVersion": "7",
        "creationTimestamp": "2026-05-01T12:00:00Z",
    }
    return view({"metadata": metadata, "spec": spec, "status": status})


def ended(reason: str = "", code: int = 1) -> JSON:
    terminated = {"exitCode": code, **({"reason": reason} if reason else {})}
    return {"phase": "Failed", "containerStatuses": [{"state": {"terminated": terminated}}]}


def evicted(message: str) -> JSON:
    return {"phase": "Failed", "reason": "Evicted", "message": message}


def condition(kind: str, reason: str, message: str = "", status: str = "True") -> JSON:
    found = {"type": kind, "status": status, "reason": reason, "message": message}
    return {"conditions": [found]}


def by_kubelet(message: str) -> JSON:
    return condition("DisruptionTarget", "TerminationByKubelet", message)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (ended("OOMKilled", 137), "OOMKilled"),
        (ended("Error", 1), "PodEnded"),
        ({"phase": "Succeeded"}, "PodEnded"),
        (evicted("The node was low on resource: memory."), "Evicted"),
        (evicted("The node was low on resource: ephemeral-storage."), "Evicted"),
        (evicted('Usage of EmptyDir volume "workspace" exceeds the limit "1Gi". '), "DiskFull"),
        (
            evicted("Pod ephemeral local storage usage exceeds the total limit of containers 2Gi."),
            "DiskFull",
        ),
        (
            evicted('Container sandbox exceeded its local ephemeral storage limit "2Gi".'),
            "DiskFull",
        ),
        ({"phase": "Failed", "reason": "Terminated", "message": "node shutdown"}, "NodeLost"),
        ({"phase": "Failed", "reason": "NodeLost"}, "NodeLost"),
        (ended() | condition("DisruptionTarget", "DeletionByPodGC"), "NodeLost"),
        (ended() | condition("DisruptionTarget", "PreemptionByScheduler"), "Evicted"),
        *(
            (ended(code=0) | {"phase": "Succeeded"} | by_kubelet(message), reason)
            for message, reason in (
                ('Usage of EmptyDir volume "workspace" exceeds the limit "1Gi". ', "DiskFull"),
                ("The node was low on resource: memory. ", "Evicted"),
                ("Pod was terminated in response to imminent node shutdown.", "NodeLost"),
            )
        ),
        # What Kubernetes adds one day says nothing that we know.
        (ended() | condition("DisruptionTarget", "SomethingNew"), "PodEnded"),
    ],
)
def test_why_a_pod_ended(status: JSON, reason: str) -> None:
    found = seen(status)
    assert found.end
    assert found.end[0] == reason
    assert found.end[1]
    assert not found.alive


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("DeletionByTaintManager", "NodeLost"),
        ("DeletionByPodGC", "NodeLost"),
        ("EvictionByEvictionAPI", "Evicted"),
        ("PreemptionByScheduler", "Evicted"),
    ],
)
def test_why_a_pod_is_taken_away(reason: str, told: str) -> None:
    found = seen({"phase": "Running", **condition("DisruptionTarget", reason)})
    assert found.disruption
    assert found.disruption[0] == told
    assert found.end is None


def test_a_disruption_that_was_called_off_is_none() -> None:
    called_off = condition("DisruptionTarget", "DeletionByPodGC", status="False")
    assert seen({"phase": "Running", **called_off}).disruption is None


def waiting(reason: str) -> JSON:
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": "why"}}}]}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (waiting("ErrImagePull"), "ImagePullFailed"),
        (waiting("ImagePullBackOff"), "ImagePullFailed"),
        (waiting("InvalidImageName"), "ImagePullFailed"),
        (waiting("CreateContainerError"), "PodFailed"),
        (waiting("ContainerCreating"), None),
        (
            condition("PodScheduled", "Unschedulable", "0/3 nodes are available: 3 too many pods."),
            "Unschedulable",
        ),
        (
            condition(
                "PodScheduled",
                "Unschedulable",
                "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            ),
            "VolumeNotBound",
        ),
        (
            condition("PodScheduled", "Unschedulable", 'persistentvolumeclaim "x" not found'),
            "VolumeNotBound",
        ),
        (
            condition(
                "PodScheduled", "Unschedulable", "1 node(s) had volume node affinity conflict"
            ),
            "VolumeNotBound",
        ),
    ],
)
def test_why_a_pod_does_not_start(status: JSON, reason: str | None) -> None:
    trouble = seen({"phase": "Pending", **status}).trouble
    assert (trouble[0] if trouble else None) == reason


def test_the_claim_of_a_workspace_is_seen() -> None:
    claim = {"name": "workspace", "persistentVolumeClaim": {"claimName": "c1"}}
    other = {"name": "data", "persistentVolumeClaim": {"claimName": "c2"}}
    assert seen({}, volumes=[other, claim]).claim == "c1"
    assert seen({}, volumes=[{"name": "workspace", "emptyDir": {}}]).claim == ""
    assert seen({}).claim == ""


@pytest.mark.parametrize(
    "said",
    ["", "x", "{}", '["x"]', '[{"path": "/w"}]', "3", pytest.param("[" * 100_000, id="deep")],
)
def test_an_annotation_that_the_operator_did_not_write_hides_no_pod(said: str) -> None:
    """Where admission is off whoever may change a pod writes it, and all pods are read at once."""
    assert seen({}, {names.GIT_TREES: said}).trees == ()
