"""The chart's admission policies on a real API server: what becomes of a pod that is there."""

import pytest

from cloister_operator import names
from faults_operator.admission import (
    ADMIN,
    COLLECTOR,
    DRY,
    JSON,
    MASTERS,
    MERGE,
    NODE,
    OPERATOR,
    PLUGIN,
    TENANT,
    ask,
    labelled,
)
from faults_operator.control_plane import ControlPlane

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


async def test_the_operator_claims_a_pod_once(plane: ControlPlane, running: str) -> None:
    claim = labelled(state="claimed", session="one")
    assert await ask(plane, OPERATOR, "PATCH", running, claim, MERGE) is None
    refused = await ask(plane, OPERATOR, "PATCH", running, labelled(session="two"), MERGE)
    assert refused is not None
    assert "one session in its life" in refused.message


@pytest.mark.parametrize("who", [ADMIN, TENANT])
async def test_nobody_else_changes_a_pod(
    plane: ControlPlane, running: str, who: tuple[str, ...]
) -> None:
    patch = {"metadata": {"annotations": {"note": "x"}}}
    refused = await ask(plane, who, "PATCH", running + DRY, patch, MERGE)
    assert refused is not None
    assert "only Cloister's operator and the cluster's own controllers" in refused.message


@pytest.mark.parametrize("who", [NODE, COLLECTOR])
async def test_controllers_keep_owners_and_no_labels(
    plane: ControlPlane, running: str, who: tuple[str, ...]
) -> None:
    patch = {"metadata": {"finalizers": ["example.com/x"]}}
    assert await ask(plane, who, "PATCH", running + DRY, patch, MERGE) is None
    refused = await ask(plane, who, "PATCH", running + DRY, labelled(state="warm"), MERGE)
    assert refused is not None
    assert "labels of sandbox pods" in refused.message


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (labelled(network="unrestricted"), "select a sandbox pod by never changes"),
        (labelled(network=None), "select a sandbox pod by never changes"),
        (labelled(environment="other"), "select a sandbox pod by never changes"),
        ({"metadata": {"labels": {names.MANAGED_BY_LABEL: "x"}}}, "select a sandbox pod"),
        ({"metadata": {"annotations": {names.EGRESS_HOSTS: "*.com"}}}, "reach through"),
        ({"metadata": {"annotations": {names.EGRESS_HOSTS: None}}}, "reach through"),
        ({"metadata": {"annotations": {"cloister.dev/more": "x"}}}, "reach through"),
        ({"spec": {"activeDeadlineSeconds": 9}}, "runs never changes"),
    ],
)
async def test_what_a_pod_is_never_changes(
    plane: ControlPlane, running: str, patch: JSON, said: str
) -> None:
    refused = await ask(plane, OPERATOR, "PATCH", running + DRY, patch, MERGE)
    assert refused is not None
    assert said in refused.message


@pytest.mark.parametrize("who", [OPERATOR, ADMIN, TENANT, NODE])
async def test_nobody_puts_a_container_into_a_pod(
    plane: ControlPlane, running: str, who: tuple[str, ...]
) -> None:
    debug = {"spec": {"ephemeralContainers": [{"name": "d", "image": "x"}]}}
    path = f"{running}/ephemeralcontainers{DRY}"
    refused = await ask(plane, who, "PATCH", path, debug, "application/strategic-merge-patch+json")
    assert refused is not None
    assert "nobody puts containers into a sandbox" in refused.message
    more = {"spec": {"containers": [{"name": names.CONTAINER,
                                     "resources": {"limits": {"cpu": "2"}}}]}}  # fmt: skip
    path = f"{running}/resize{DRY}"
    refused = await ask(plane, who, "PATCH", path, more, "application/strategic-merge-patch+json")
    assert refused is not None
    assert "nobody puts containers into a sandbox" in refused.message


async def test_a_pods_address_is_the_kubelets_word(plane: ControlPlane, running: str) -> None:
    status = {"status": {"podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}]}}
    path = f"{running}/status{DRY}"
    assert await ask(plane, NODE, "PATCH", path, status, MERGE) is None
    refused = await ask(plane, TENANT, "PATCH", path, status, MERGE)
    assert refused is not None
    assert "write the status of sandbox pods" in refused.message


async def test_who_writes_a_pods_status_says_nothing_else_of_it(
    plane: ControlPlane, running: str
) -> None:
    """The API server takes labels and annotations that come with a status."""
    for key, message in (
        ("labels", "only Cloister's operator changes the labels of sandbox pods"),
        ("annotations", "what a sandbox may reach through the egress gateways never changes"),
    ):
        for name in (names.NETWORK_LABEL, names.EGRESS_HOSTS):
            body: JSON = {"metadata": {key: {name: "unrestricted"}}}
            refused = await ask(plane, PLUGIN, "PATCH", f"{running}/status", body, MERGE)
            assert refused is not None, (await plane.admin.call("GET", running))["metadata"]
            assert message in refused.message
    own = {"metadata": {"annotations": {"cni.example/ip": "10.0.0.9"}}}
    assert await ask(plane, PLUGIN, "PATCH", f"{running}/status", own, MERGE) is None


async def test_a_binding_says_nothing_of_a_pods_labels(plane: ControlPlane, running: str) -> None:
    """The API server copies these into the pod, too, over what policies select it by."""
    found = (await plane.admin.call("GET", running))["metadata"]
    scheduler = ("system:kube-scheduler", MASTERS)
    body: JSON = {"metadata": {"name": found["name"]}, "target": {"kind": "Node", "name": "n1"}}
    for each in (names.NETWORK_LABEL, names.MANAGED_BY_LABEL, names.SESSION_LABEL):
        body["metadata"]["labels"] = {each: "unrestricted"}
        refused = await ask(plane, scheduler, "POST", f"{running}/binding", body)
        assert refused is not None, each
        assert "select a sandbox pod by is not a scheduler's to say" in refused.message
    body["metadata"]["labels"] = {"topology.kubernetes.io/zone": "a"}
    assert await ask(plane, scheduler, "POST", f"{running}/binding", body) is None
    bound = (await plane.admin.call("GET", running))["metadata"]["labels"]
    assert bound == found["labels"] | body["metadata"]["labels"]
