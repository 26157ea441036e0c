"""What Environments may say of nodes, devices and priorities, refused by a real API server."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from faults_operator.admission import ADMIN, DRY, SANDBOXES, ask
from faults_operator.control_plane import ControlPlane, control_plane
from support.chart import render
from support.operator_objects import environment_body

ENVIRONMENTS = f"/apis/cloister.dev/v1alpha1/namespaces/{SANDBOXES}/environments"
POLICIES = "/apis/admissionregistration.k8s.io/v1"
PATCH = "application/merge-patch+json"
NONE = {"allowedNodeLabels": "[]"}
"""Of the rest, none is the chart's own."""
SOME = {
    "allowedTolerations": '["pool","b.example/*"]',
    "allowedNodeLabels": '["zone","a.b*"]',
    "allowedPriorityClasses": '["low","lower-?"]',
    "allowedExtendedResources": '["gpu.example/*"]',
}
TOLERATIONS, NODES = "spec.scheduling.tolerations", "spec.scheduling.nodeSelector"
PRIORITY, DEVICES = "spec.scheduling.priorityClassName", "spec.resources.extended"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """An API server that knows our kinds, and a namespace for each list of the platform's."""
    async with control_plane(tmp_path_factory.mktemp("plane") / "plane") as made:
        for name, values in ((SANDBOXES, SOME), ("closed", NONE)):
            await made.admin.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            given = [
                part
                for key, each in values.items()
                for part in ("--set-json", f"sandbox.{key}={each}")
            ]
            rendered = render(*given, "--set", f"sandboxNamespaces[0].name={name}")
            for kind, plural in (
                ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
                ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
            ):
                for each in rendered.of(kind):
                    if each["metadata"]["name"] == "cloister-sandbox-environments":
                        each["metadata"]["name"] += f"-{name}"
                        if "policyName" in each["spec"]:
                            each["spec"]["policyName"] += f"-{name}"
                        await made.admin.call("POST", f"{POLICIES}/{plural}", each)
        for name in (SANDBOXES, "closed"):
            # The API server's watch of policies brings them into effect.
            while await say(made, {"resources": {"extended": {"x.example/y": 1}}}, name) is None:
                pass
        yield made


async def say(plane: ControlPlane, spec: dict[str, Any], namespace: str = SANDBOXES) -> str | None:
    """What is said to an Environment; None when it is taken."""
    body = environment_body("placed", **spec)
    body["metadata"]["namespace"] = namespace
    path = ENVIRONMENTS.replace(SANDBOXES, namespace)
    refused = await ask(plane, ADMIN, "POST", path + DRY, body)
    return refused.message if refused else None


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"scheduling": {"tolerations": [{"operator": "Exists"}]}}, TOLERATIONS),
        (
            {"scheduling": {"tolerations": [{"key": "node-role.kubernetes.io/control-plane"}]}},
            TOLERATIONS,
        ),
        ({"scheduling": {"tolerations": [{"key": "pool"}, {"key": "xpool"}]}}, TOLERATIONS),
        ({"scheduling": {"tolerations": [{"key": "bxexample/y"}]}}, TOLERATIONS),
        ({"scheduling": {"nodeSelector": {"zone": "a", "kubernetes.io/hostname": "n"}}}, NODES),
        ({"scheduling": {"nodeSelector": {"axb": "c"}}}, NODES),
        ({"scheduling": {"priorityClassName": "high"}}, PRIORITY),
        ({"scheduling": {"priorityClassName": "lower-10"}}, PRIORITY),
        ({"resources": {"extended": {"devices.example/kvm": 1}}}, DEVICES),
    ],
)
async def test_what_the_platform_does_not_list_is_refused_by_its_field(
    plane: ControlPlane, spec: dict[str, Any], field: str
) -> None:
    assert field in (await say(plane, spec) or "")
    assert field in (await say(plane, spec, "closed") or "")
    # Elsewhere there are no sandboxes.
    assert await say(plane, spec, "default") is None


async def test_what_the_platform_lists_is_taken(plane: ControlPlane) -> None:
    wanted = {
        "tolerations": [{"key": "pool"}, {"key": "b.example/x", "operator": "Exists"}],
        "nodeSelector": {"zone": "a", "a.b/c": "d"},
        "priorityClassName": "lower-1",
    }
    resources = {"extended": {"gpu.example/one": 2}}
    assert await say(plane, {"scheduling": wanted, "resources": resources}) is None
    assert await say(plane, {}, "closed") is None
    assert await say(plane, {"scheduling": {"imagePullSecrets": [{"name": "a"}]}}, "closed") is None


async def test_what_was_there_before_may_change_elsewhere(plane: ControlPlane) -> None:
    old = {"tolerations": [{"key": "old"}], "nodeSelector": {"old": "a"}, "priorityClassName": "o"}
    body = environment_body("before", scheduling=old, resources={"extended": {"old.example/a": 1}})
    body["metadata"]["namespace"] = SANDBOXES
    binding = (
        f"{POLICIES}/validatingadmissionpolicybindings/cloister-sandbox-environments-{SANDBOXES}"
    )
    there = await plane.admin.call("GET", binding)
    await plane.admin.call("DELETE", binding)
    while await ask(plane, ADMIN, "POST", ENVIRONMENTS, body) is not None:
        pass
    del there["metadata"]["resourceVersion"], there["metadata"]["uid"]
    await plane.admin.call("POST", f"{POLICIES}/validatingadmissionpolicybindings", there)
    while await say(plane, {"resources": {"extended": {"x.example/y": 1}}}) is None:
        pass
    path = f"{ENVIRONMENTS}/before"
    for changed in ({"nodeSelector": None}, {"priorityClassName": None}):
        better = {"spec": {"pool": {"size": 2}, "scheduling": changed}}
        assert await ask(plane, ADMIN, "PATCH", path, better, PATCH) is None
    worse = {"spec": {"scheduling": {"tolerations": [{"key": "old"}, {"operator": "Exists"}]}}}
    refused = await ask(plane, ADMIN, "PATCH", path, worse, PATCH)
    assert refused is not None
    assert TOLERATIONS in refused.message
