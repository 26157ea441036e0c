"""Nobody weakens a sandbox namespace or reaches into it, whatever RBAC allows them."""

import json
from collections.abc import Callable, Iterator

import pytest

import cloister
from support.cluster import (
    SANDBOX_IMAGE,
    SANDBOXES,
    SYSTEM,
    Result,
    apply,
    condition,
    get,
    kubectl,
    session,
    wait_condition,
    wait_for,
    wait_phase,
)

BREAK_GLASS = ("--as=oncall", "--as-group=system:masters", "--as-group=cloister:break-glass")
TENANT = ("--as=tenant", "--as-group=e2e:tenants")
BINDING = "cloister-sandbox-pods"


@pytest.fixture(scope="module")
def running(
    client: cloister.Client, environments: Callable[..., str]
) -> Iterator["cloister.Session"]:
    with client.create_session(environments()) as made:
        yield made


@pytest.fixture(scope="module")
def _tenant() -> Iterator[None]:
    """The group e2e:tenants is admin of the sandbox namespace, as RBAC has it."""
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "e2e-tenants", "namespace": SANDBOXES},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "admin",
        },
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "e2e:tenants"}
        ],
    }
    apply(binding)
    yield
    kubectl("delete", "rolebinding", "e2e-tenants", "-n", SANDBOXES)


def refused(result: Result, words: str) -> None:
    assert result.code != 0
    assert words in result.err, result.err


def test_the_policies_are_found_in_effect(running: "cloister.Session") -> None:
    found = wait_condition("environment", running.environment, "AdmissionEnforced")
    assert condition(found, "AdmissionEnforced")["reason"] == "AdmissionProven"


@pytest.mark.usefixtures("_tenant")
@pytest.mark.parametrize("who", [(), TENANT], ids=["cluster-admin", "namespace-admin"])
def test_nobody_reaches_into_a_sandbox(running: "cloister.Session", who: tuple[str, ...]) -> None:
    pod, words = running.pod_name, "nobody reaches into a sandbox"
    there = ("-n", SANDBOXES, *who)
    refused(kubectl("exec", pod, *there, "--", "id", check=False), words)
    refused(kubectl("attach", pod, *there, check=False), words)
    refused(kubectl("port-forward", pod, ":7443", *there, check=False), words)
    raw = f"/api/v1/namespaces/{SANDBOXES}/pods/{pod}:7443/proxy/"
    refused(kubectl("get", "--raw", raw, *who, check=False), words)


def test_nobody_puts_a_container_into_a_sandbox(running: "cloister.Session") -> None:
    """One that Pod Security would let in."""
    image = ("--profile=restricted", f"--image={SANDBOX_IMAGE}")
    debug = kubectl("debug", running.pod_name, *image, "-n", SANDBOXES, check=False)
    refused(debug, "nobody puts containers into a sandbox")


def test_who_breaks_the_glass_gets_in(running: "cloister.Session") -> None:
    found = kubectl("exec", running.pod_name, "-n", SANDBOXES, *BREAK_GLASS, "--", "id", "-u")
    assert found.out.strip() == "1000"


@pytest.mark.usefixtures("_tenant")
def test_a_namespaces_admin_makes_no_pod_and_opens_no_network(running: "cloister.Session") -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "mine", "namespace": SANDBOXES, "labels": {"cloister.dev/x": "y"}},
        "spec": get("pod", running.pod_name)["spec"],  # type: ignore[index]
    }
    pod["spec"].pop("nodeName")
    made = kubectl("create", "-f", "-", *TENANT, stdin=json.dumps(pod), check=False)
    refused(made, "only Cloister's operator makes pods")
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "open", "namespace": SANDBOXES},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]},
    }
    made = kubectl("create", "-f", "-", *TENANT, stdin=json.dumps(policy), check=False)
    refused(made, "only Cloister's operator and the platform")
    gone = kubectl(
        "delete", "networkpolicy", "cloister-default-deny", "-n", SANDBOXES, *TENANT, check=False
    )
    refused(gone, "only Cloister's operator and the platform")
    relabelled = kubectl(
        *("label", "pod", running.pod_name, "cloister.dev/network=unrestricted", "--overwrite"),
        *("-n", SANDBOXES, *TENANT),
        check=False,
    )
    refused(relabelled, "only Cloister's operator and the cluster's own controllers")


@pytest.mark.disruptive
def test_policies_that_are_gone_are_noticed_and_stop_new_sessions(
    name: str, environments: Callable[..., str]
) -> None:
    environment = environments()
    binding = kubectl("get", "validatingadmissionpolicybinding", BINDING, "-o", "json").out
    kept = json.loads(binding)
    for each in ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"):
        kept["metadata"].pop(each, None)
    kubectl("delete", "validatingadmissionpolicybinding", BINDING)
    try:
        # It tries at its start; the next round would come within the hour.
        kubectl("rollout", "restart", "deployment/cloister-operator", "-n", SYSTEM)
        wait_condition("environment", environment, "AdmissionEnforced", "False", 120)
        wait_condition("environment", environment, "Ready", "False")
        apply(session(name, environment))
        waiting = wait_for(
            "why it waits",
            lambda: condition(get("session", name), "Ready") or None,
        )
        assert "admission" in waiting["message"]
    finally:
        apply(kept)
    wait_condition("environment", environment, "AdmissionEnforced", deadline=60)
    wait_phase(name, "Running")
    kubectl("delete", "session", name, "-n", SANDBOXES)
    kubectl("rollout", "status", "deployment/cloister-operator", "-n", SYSTEM, "--timeout=3m")
