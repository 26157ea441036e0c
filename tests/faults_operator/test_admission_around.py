"""The chart's admission policies on a real API server: what pods mount, and what surrounds them."""

import pytest

from cloister_operator import names
from faults_operator.admission import (
    ADMIN,
    COLLECTOR,
    DRY,
    JSON,
    MERGE,
    OPERATOR,
    SANDBOXES,
    SYSTEM,
    TENANT,
    ask,
    labelled,
    pod,
)
from faults_operator.control_plane import ControlPlane

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

ENVIRONMENT = {"apiVersion": "cloister.dev/v1alpha1", "kind": "Environment", "name": "minimal"}
OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x"}
RECIPE, POD = "minimal-0123456789", "minimal-01234-89abcdef"
CORE = f"/api/v1/namespaces/{SANDBOXES}"


def owned(name: str, *owners: JSON) -> JSON:
    references = [{"uid": f"uid-of-{each['kind']}", **each} for each in owners]
    return {"metadata": {"name": name, "ownerReferences": references}}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("secrets", owned(RECIPE, ENVIRONMENT)),
        ("secrets", owned("x", OWNER, {**ENVIRONMENT, "kind": "Session"})),
        ("persistentvolumeclaims", owned("x", {**ENVIRONMENT, "kind": "Session"})),
        ("secrets", owned("x", {"apiVersion": "v1", "kind": "Pod", "name": "minimal"})),
        # The same UID under another kind.
        ("secrets", owned(RECIPE, OWNER)),
        ("secrets", owned(POD, OWNER)),
        ("persistentvolumeclaims", owned(POD, OWNER)),
        ("persistentvolumeclaims", owned("s1-0f8fad5b", OWNER)),
    ],
    ids=str,
)
async def test_nobody_else_makes_what_a_sandbox_mounts(
    plane: ControlPlane, kind: str, body: JSON
) -> None:
    """An edit role has these rights: what is there under its owner's UID is taken for our own."""
    if kind != "secrets":
        storage = {"requests": {"storage": "1Mi"}}
        body = {**body, "spec": {"accessModes": ["ReadWriteOnce"], "resources": storage}}
    refused = await ask(plane, TENANT, "POST", f"{CORE}/{kind}{DRY}", body)
    assert refused is not None
    assert "only Cloister's operator makes Secrets" in refused.message
    for who in (OPERATOR, COLLECTOR, ADMIN):
        assert await ask(plane, who, "POST", f"{CORE}/{kind}{DRY}", body) is None


async def test_nobody_makes_a_secret_of_theirs_look_like_the_operators(plane: ControlPlane) -> None:
    for name, owner in ((RECIPE, OWNER), ("theirs", ENVIRONMENT)):
        assert (
            await ask(plane, TENANT, "POST", f"{CORE}/secrets", {"metadata": {"name": name}})
            is None
        )
        path, body = f"{CORE}/secrets/{name}", owned(name, owner)
        refused = await ask(plane, TENANT, "PATCH", path, body, MERGE)
        assert refused is not None
        assert "only Cloister's operator makes Secrets" in refused.message
        assert await ask(plane, TENANT, "PATCH", path, labelled(mine="yes"), MERGE) is None
        await plane.admin.call("DELETE", path)
    for given in ({"name": "db-credentials"}, {"name": "its-7d9c5b"}, {"generateName": "its-"}):
        found = owned("", {"apiVersion": "example.com/v1", "kind": "Certificate", "name": "x"})
        found["metadata"] = found["metadata"] | {"name": None} | given
        assert await ask(plane, TENANT, "POST", f"{CORE}/secrets{DRY}", found) is None, given


async def test_nobody_puts_a_secret_in_place_of_one_that_a_sandbox_mounts(
    plane: ControlPlane, running: str
) -> None:
    """Pods mount by name: what is there stays, and a pod's own name is nobody else's."""
    await plane.admin.call("POST", f"{CORE}/configmaps", {"metadata": {"name": "of-ours"}})
    uid = (await plane.admin.call("GET", f"{CORE}/configmaps/of-ours"))["metadata"]["uid"]
    # Owners that are there, so that the garbage collector lets the Secrets be.
    alive = {**OWNER, "name": "of-ours", "uid": uid}
    environments = f"/apis/cloister.dev/v1alpha1/namespaces/{SANDBOXES}/environments"
    await plane.admin.call("POST", environments, {**ENVIRONMENT, "metadata": {"name": "mounted"}})
    its_pod = {"apiVersion": "v1", "kind": "Pod"}
    for name, like, of in (
        (RECIPE, ENVIRONMENT, f"{environments}/mounted"),
        (POD, its_pod, running),
    ):
        there = (await plane.admin.call("GET", of))["metadata"]
        owner = {**like, "name": there["name"], "uid": there["uid"]}
        path, body = f"{CORE}/secrets/{name}", owned(name, alive, owner)
        assert await ask(plane, OPERATOR, "POST", f"{CORE}/secrets", body) is None
        for method, way, said in (
            ("DELETE", f"{path}{DRY}", None),
            ("DELETE", f"{CORE}/secrets{DRY}", None),
            ("PATCH", f"{path}{DRY}", {"metadata": {"ownerReferences": None}}),
            ("PATCH", f"{path}{DRY}", owned(name, alive)),
        ):
            refused = await ask(plane, TENANT, method, way, said, MERGE)
            assert refused is not None, (method, way, said)
            assert "only Cloister's operator takes away Secrets" in refused.message
        for who in (OPERATOR, COLLECTOR, ADMIN):
            assert await ask(plane, who, "DELETE", f"{path}{DRY}") is None
        await plane.admin.call("DELETE", path)
    refused = await ask(plane, TENANT, "POST", f"{CORE}/secrets{DRY}", {"metadata": {"name": POD}})
    assert refused is not None
    assert "with names like those of sandbox pods" in refused.message


async def test_others_secrets_are_taken_away_as_ever(plane: ControlPlane) -> None:
    await plane.admin.call("POST", f"{CORE}/configmaps", {"metadata": {"name": "theirs"}})
    uid = (await plane.admin.call("GET", f"{CORE}/configmaps/theirs"))["metadata"]["uid"]
    for name, owners in ((RECIPE, []), ("theirs", [{**OWNER, "name": "theirs", "uid": uid}])):
        assert await ask(plane, TENANT, "POST", f"{CORE}/secrets", owned(name, *owners)) is None
        assert await ask(plane, TENANT, "DELETE", f"{CORE}/secrets/{name}") is None


async def test_what_is_said_of_the_operators_own_secrets_may_change(plane: ControlPlane) -> None:
    # An owner that is there, so that the garbage collector lets the Secret be.
    owner = {"metadata": {"name": "owner"}}
    await plane.admin.call("POST", f"{CORE}/configmaps", owner)
    uid = (await plane.admin.call("GET", f"{CORE}/configmaps/owner"))["metadata"]["uid"]
    made = owned(RECIPE, {**OWNER, "name": "owner", "uid": uid})
    assert await ask(plane, OPERATOR, "POST", f"{CORE}/secrets", made) is None
    note = labelled(noted="by-somebody")
    assert await ask(plane, TENANT, "PATCH", f"{CORE}/secrets/{RECIPE}{DRY}", note, MERGE) is None


# What surrounds it.


@pytest.mark.parametrize("way", ["exec?command=id", "attach", "portforward?ports=7443", "proxy/"])
async def test_nobody_reaches_into_a_pod_but_who_breaks_the_glass(
    plane: ControlPlane, running: str, way: str
) -> None:
    path = f"{running}/{way}"
    for who in (OPERATOR, ADMIN, TENANT):
        refused = await ask(plane, who, "POST", path)
        assert refused is not None
        assert "nobody reaches into a sandbox" in refused.message
    refused = await ask(plane, (*ADMIN, "cloister:break-glass"), "POST", path)
    # It was let in, and there is no node to go on to.
    assert refused is not None
    assert "nobody reaches into a sandbox" not in refused.message


@pytest.mark.parametrize("way", ["exec?command=id", "attach", "portforward?ports=3129"])
async def test_who_forwards_ports_to_the_operator_reaches_into_no_gateway(
    plane: ControlPlane, way: str
) -> None:
    """On loopback a gateway's parts believe whoever says for which sandbox it asks."""
    gateway, operator = "cloister-egress-gateway-6d4cf56db6-x7x2p", "cloister-operator-5c9f-k2x4p"
    pods = f"/api/v1/namespaces/{SYSTEM}/pods"
    for name in (gateway, operator):
        body = pod("minimal") | {"metadata": {"name": name}}
        await plane.admin.call("POST", pods, body)
    try:
        for who, name in ((TENANT, gateway), (TENANT, operator), (ADMIN, gateway)):
            refused = await ask(plane, who, "POST", f"{pods}/{name}/{way}")
            # Who is let in comes to no node.
            assert refused is not None
            kept_out = "into an egress gateway" in refused.message
            assert kept_out == ((who, name) == (TENANT, gateway))
    finally:
        await plane.admin.call("DELETE", f"{pods}?gracePeriodSeconds=0")


POLICIES = f"/apis/networking.k8s.io/v1/namespaces/{SANDBOXES}/networkpolicies"
OPEN = {"metadata": {"name": "open"}, "spec": {"podSelector": {}, "egress": [{}]}}
BINDINGS = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{SANDBOXES}/rolebindings"
BINDING = {
    "metadata": {"name": "x"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tenant"},
    "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": SANDBOXES}],
}
ROLES = BINDINGS.replace("rolebindings", "roles")
ROLE = {"metadata": {"name": "x"}, "rules": []}


@pytest.mark.parametrize(
    ("path", "body"), [(POLICIES, OPEN), (BINDINGS, BINDING), (ROLES, ROLE)], ids=["np", "rb", "r"]
)
async def test_only_the_platform_changes_the_rules_of_a_namespace(
    plane: ControlPlane, path: str, body: JSON
) -> None:
    refused = await ask(plane, TENANT, "POST", path + DRY, body)
    assert refused is not None
    assert "only Cloister's operator and the platform" in refused.message
    assert await ask(plane, ADMIN, "POST", path, body) is None
    one = f"{path}/{body['metadata']['name']}"
    for method, given in (("PATCH", {"metadata": {"labels": {"a": "b"}}}), ("DELETE", None)):
        refused = await ask(plane, TENANT, method, one + DRY, given, MERGE)
        assert refused is not None
        assert "only Cloister's operator and the platform" in refused.message
    assert await ask(plane, COLLECTOR, "DELETE", one) is None


async def test_the_policy_that_denies_everything_denies_everything(plane: ControlPlane) -> None:
    deny: JSON = {
        "metadata": {"name": names.DENY_POLICY},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }
    assert await ask(plane, OPERATOR, "POST", POLICIES + DRY, deny) is None
    changes: list[JSON] = [
        {"egress": [{}]},
        {"ingress": [{}]},
        {"policyTypes": ["Ingress"]},
        {"podSelector": {"matchLabels": {"a": "b"}}},
    ]
    for change in changes:
        for who in (OPERATOR, ADMIN):
            weaker = {**deny, "spec": {**deny["spec"], **change}}
            refused = await ask(plane, who, "POST", POLICIES + DRY, weaker)
            assert refused is not None, change
            assert "denies everything to all pods" in refused.message
