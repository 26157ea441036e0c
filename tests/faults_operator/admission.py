"""An API server with the chart's admission policies in effect, and who asks it.

Without Pod Security, so that what is refused is refused by the policies themselves. Nobody here
lacks a right for what is asked: the API server asks the policies all the same.
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from faults_operator.control_plane import ControlPlane, control_plane
from support.chart import ROOT, render

JSON = dict[str, Any]
SYSTEM, SANDBOXES = "cloister-system", "cloister-sandboxes"
PODS = f"/api/v1/namespaces/{SANDBOXES}/pods"
DRY = "?dryRun=All"
MASTERS = "system:masters"
OPERATOR = (f"system:serviceaccount:{SYSTEM}:cloister-operator", MASTERS)
ADMIN = ("kubernetes-admin", MASTERS)
TENANT = ("alice", "tenants")
"""Whom RBAC allows everything in the namespace, and not to administer sandbox namespaces."""
NODE = ("system:node:n1", "system:nodes", MASTERS)
COLLECTOR = (
    "system:serviceaccount:kube-system:generic-garbage-collector",
    "system:serviceaccounts:kube-system",
    MASTERS,
)
PLUGIN = (
    "system:serviceaccount:kube-system:network-plugin",
    "system:serviceaccounts:kube-system",
    MASTERS,
)
GOLDEN = ROOT / "tests" / "golden" / "operator"
MERGE = "application/merge-patch+json"


class Refused(NamedTuple):
    """An answer that is no success."""

    status: int
    message: str


@contextlib.asynccontextmanager
async def admission_plane(path: Path) -> AsyncIterator[ControlPlane]:
    """An API server with the namespaces and the policies of the chart, which are in effect.

    `path`: of a folder that it makes.
    """
    async with control_plane(path) as made:
        for name in (SANDBOXES, SYSTEM, "elsewhere"):
            await made.admin.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        rendered = render("--set", "sandbox.allowedRuntimeClasses[0].name=gvisor",
                          "--set", "sandbox.allowedRuntimeClasses[0].userNamespaces=false",
                          "--set", "sandbox.allowedRuntimeClasses[1]=kata")  # fmt: skip
        group = "/apis/admissionregistration.k8s.io/v1"
        for kind, plural in (
            ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
            ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
        ):
            for each in rendered.of(kind):
                await made.admin.call("POST", f"{group}/{plural}", each)
        for name in ("gvisor", "kata", "runc-debug"):
            runtime = {"metadata": {"name": name}, "handler": name}
            await made.admin.call("POST", "/apis/node.k8s.io/v1/runtimeclasses", runtime)
        priority = {"metadata": {"name": "sandboxes"}, "value": 1}
        await made.admin.call("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", priority)
        rights = {
            "metadata": {"name": "tenant"},
            "rules": [{"apiGroups": [""], "resources": ["*"], "verbs": ["*"]},
                      {"apiGroups": ["networking.k8s.io"], "resources": ["*"], "verbs": ["*"]},
                      {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"],
                       "verbs": ["*"]}],
        }  # fmt: skip
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        await made.admin.call("POST", f"{rbac}/clusterroles", rights)
        binding = {
            "metadata": {"name": "tenant"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                        "name": "tenant"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group",
                          "name": "tenants"}],
        }  # fmt: skip
        await made.admin.call("POST", f"{rbac}/clusterrolebindings", binding)
        # The API server's watch of policies brings them into effect.
        while await ask(made, ADMIN, "POST", PODS + DRY, pod("minimal")) is None:
            pass
        yield made


async def ask(
    plane: ControlPlane,
    who: tuple[str, ...],
    method: str,
    path: str,
    body: Any = None,
    content_type: str = "application/json",
) -> Refused | None:
    """A request as somebody else; None when it is granted."""
    name, *groups = who
    session, server = plane.admin._session, plane.admin._server
    headers = [("Impersonate-User", name), ("Content-Type", content_type)]
    headers += [("Impersonate-Group", each) for each in groups]
    async with session.request(method, server + path, json=body, headers=headers) as response:
        said = await response.json()
        if response.status < 300:
            return None
        return Refused(response.status, said["message"])


def pod(name: str) -> JSON:
    """A pod as the operator makes it."""
    text = (GOLDEN / name / "expected.yaml").read_text()
    (found,) = [each for each in yaml.safe_load_all(text) if each["kind"] == "Pod"]
    made: JSON = found
    made["metadata"]["namespace"] = SANDBOXES
    return made


def labelled(**labels: str | None) -> JSON:
    changed = {f"cloister.dev/{key}": value for key, value in labels.items()}
    return {"metadata": {"labels": changed}}
