"""The chart's admission policies on a real API server: what gets into a sandbox namespace."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from cloister_operator import names
from faults_operator.admission import (
    ADMIN,
    COLLECTOR,
    DRY,
    GOLDEN,
    JSON,
    MASTERS,
    NODE,
    OPERATOR,
    PODS,
    SANDBOXES,
    TENANT,
    ask,
    pod,
)
from faults_operator.control_plane import ControlPlane

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "name", sorted(each.parent.name for each in GOLDEN.glob("*/expected.yaml"))
)
async def test_what_the_operator_makes_is_admitted(plane: ControlPlane, name: str) -> None:
    assert await ask(plane, OPERATOR, "POST", PODS + DRY, pod(name)) is None


@pytest.mark.parametrize("who", [ADMIN, TENANT, NODE, COLLECTOR])
async def test_nobody_else_makes_a_pod(plane: ControlPlane, who: tuple[str, ...]) -> None:
    refused = await ask(plane, who, "POST", PODS + DRY, pod("minimal"))
    assert refused is not None
    assert "only Cloister's operator makes pods" in refused.message


@pytest.mark.parametrize("who", [ADMIN, TENANT, NODE, OPERATOR])
@pytest.mark.parametrize("path", [f"{PODS}/bound/binding", PODS.replace("pods", "bindings")])
async def test_nobody_but_schedulers_binds_a_pod(
    plane: ControlPlane, who: tuple[str, ...], path: str
) -> None:
    """The API server copies a binding's annotations into the pod: its hosts would be anybody's."""
    body: JSON = {
        "metadata": {"name": "bound", "annotations": {"cloister.dev/egress-hosts": "evil.example"}},
        "target": {"kind": "Node", "name": "n1"},
    }
    refused = await ask(plane, who, "POST", path, body)
    assert refused is not None
    assert "only schedulers choose the node" in refused.message
    scheduler = ("system:kube-scheduler", MASTERS)
    refused = await ask(plane, scheduler, "POST", path, body)
    assert refused is not None
    assert "egress gateways is not a scheduler's to say" in refused.message
    del body["metadata"]["annotations"]
    refused = await ask(plane, scheduler, "POST", path + DRY, body)
    assert refused is not None
    assert refused.status == 404, "there is no such pod, which is looked for after the policies"


async def test_other_namespaces_are_left_alone(plane: ControlPlane) -> None:
    body = pod("minimal")
    body["metadata"]["namespace"] = "elsewhere"
    body["spec"] |= {"hostNetwork": True, "hostUsers": True}
    path = PODS.replace(SANDBOXES, "elsewhere")
    assert await ask(plane, TENANT, "POST", path + DRY, body) is None


def container(**fields: Any) -> Callable[[JSON], None]:
    """Sets fields of the one container."""
    return lambda spec: spec["containers"][0].update(fields)


def secured(**fields: Any) -> Callable[[JSON], None]:
    """Sets fields of its security context."""
    return lambda spec: spec["containers"][0]["securityContext"].update(fields)


def of_pod(**fields: Any) -> Callable[[JSON], None]:
    return lambda spec: spec["securityContext"].update(fields)


def set_to(**fields: Any) -> Callable[[JSON], None]:
    return lambda spec: spec.update(fields)


def volume(**source: Any) -> Callable[[JSON], None]:
    return lambda spec: spec["volumes"].append({"name": "more", **source})


def second(**fields: Any) -> Callable[[JSON], None]:
    """Adds a container that is only almost as good as the first."""

    def add(spec: JSON) -> None:
        made = copy.deepcopy(spec["containers"][0]) | {"name": "second"}
        made["securityContext"].update(fields)
        spec["containers"].append(made)

    return add


def first(**fields: Any) -> Callable[[JSON], None]:
    """The same as an init container."""

    def add(spec: JSON) -> None:
        made = copy.deepcopy(spec["containers"][0]) | {"name": "first"}
        made["securityContext"].update(fields)
        spec["initContainers"] = [made]

    return add


def root_on_the_node(spec: JSON) -> None:
    spec["hostUsers"] = True
    spec["securityContext"] |= {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
    spec["containers"][0]["securityContext"] |= {"readOnlyRootFilesystem": False}


def token(spec: JSON) -> None:
    source = {"serviceAccountToken": {"path": "token"}}
    spec["serviceAccountName"] = "default"
    spec["volumes"].append({"name": "more", "projected": {"sources": [source]}})


ROWS: list[tuple[str, Callable[[JSON], None], str]] = [
    ("host network", set_to(hostNetwork=True, hostUsers=True), "shares no namespace"),
    ("host pids", set_to(hostPID=True, hostUsers=True), "shares no namespace"),
    ("host ipc", set_to(hostIPC=True, hostUsers=True), "shares no namespace"),
    ("shared processes", set_to(shareProcessNamespace=True), "shares no namespace"),
    ("host users", set_to(hostUsers=True), "user namespace of its own"),
    ("host users by default", lambda spec: spec.pop("hostUsers"), "user namespace of its own"),
    ("host users under kata", set_to(hostUsers=True, runtimeClassName="kata"), "user namespace"),
    ("root on the node", root_on_the_node, "user namespace of its own"),
    ("another runtime", set_to(runtimeClassName="runc-debug"), "runtime class"),
    ("privileged", secured(privileged=True, allowPrivilegeEscalation=True), "privileged"),
    ("privileged init", first(privileged=True, allowPrivilegeEscalation=True), "privileged"),
    ("privileged second", second(privileged=True, allowPrivilegeEscalation=True), "privileged"),
    ("new privileges", secured(allowPrivilegeEscalation=True), "gains privileges"),
    ("raw sockets", secured(capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}), "capabilities"),
    ("sys_admin", first(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}), "capabilities"),
    ("capabilities kept", secured(capabilities={"drop": ["NET_RAW"]}), "drops all capabilities"),
    ("unmasked proc", secured(procMount="Unmasked"), "unmasked /proc"),
    ("no seccomp", of_pod(seccompProfile={"type": "Unconfined"}), "seccomp"),
    ("no seccomp here", secured(seccompProfile={"type": "Unconfined"}), "seccomp"),
    ("own seccomp", secured(seccompProfile={"type": "Localhost", "localhostProfile": "x"}),
     "seccomp"),
    ("no apparmor", secured(appArmorProfile={"type": "Unconfined"}), "AppArmor"),
    ("selinux", of_pod(seLinuxOptions={"type": "spc_t"}), "SELinux"),
    ("sysctl", of_pod(sysctls=[{"name": "net.core.somaxconn", "value": "1"}]), "sysctls"),
    ("groups", of_pod(supplementalGroups=[6]), "groups"),
    ("root under strict", secured(runAsUser=0, runAsNonRoot=False), "nobody is root"),
    ("root's group", secured(runAsGroup=0), "nobody is root"),
    ("maybe root", of_pod(runAsNonRoot=False), "nobody is root"),
    ("writable root", secured(readOnlyRootFilesystem=False), "read-only"),
    ("host path", volume(hostPath={"path": "/"}), "volumes are"),
    ("token", token, "volumes are"),
    ("trust bundle", volume(projected={"sources": [{"clusterTrustBundle": {
        "name": "x", "path": "x"}}]}), "volumes are"),
    ("nfs", volume(nfs={"server": "10.0.0.1", "path": "/"}), "volumes are"),
    ("csi", volume(csi={"driver": "secrets-store.csi.k8s.io"}), "volumes are"),
    ("endless disk", volume(emptyDir={}), "sizeLimit"),
    ("host port", container(ports=[{"containerPort": 1, "hostPort": 1}]), "no port"),
    ("no limit", container(resources={"limits": {"cpu": "1", "memory": "1Gi"}}), "limits"),
    ("mounted token", set_to(automountServiceAccountToken=True), "no token"),
    ("other account", set_to(serviceAccountName="cloister-worker"), "no service account"),
    ("service links", set_to(enableServiceLinks=True), "services"),
    ("cluster's names", set_to(dnsPolicy="ClusterFirst", dnsConfig=None), "resolver"),
    ("a resolver", set_to(dnsConfig={"nameservers": ["10.96.0.10"]}), "resolver"),
    ("two resolvers", set_to(dnsConfig={"nameservers": ["127.0.0.1", "8.8.8.8"]}), "resolver"),
    ("search", set_to(dnsConfig={"nameservers": ["127.0.0.1"], "searches": ["svc"]}), "resolver"),
    ("aliases", set_to(hostAliases=[{"ip": "10.0.0.1", "hostnames": ["x"]}]), "resolver"),
    ("a hook", container(lifecycle={"postStart": {"httpGet": {
        "host": "169.254.169.254", "port": 80}}}), "hooks"),
    ("a probe", container(livenessProbe={"httpGet": {
        "host": "169.254.169.254", "port": 80}}), "probes"),
    ("restarted", set_to(restartPolicy="Always"), "never restarted"),
    ("placed", set_to(nodeName="n1"), "takes no place"),
    ("important", set_to(priorityClassName="system-node-critical"), "system priority"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
async def test_a_pod_that_is_less_hardened_is_refused_even_to_the_operator(
    plane: ControlPlane, change: Callable[[JSON], None], said: str
) -> None:
    body = pod("minimal")
    change(body["spec"])
    refused = await ask(plane, OPERATOR, "POST", PODS + DRY, body)
    assert refused is not None
    assert "ValidatingAdmissionPolicy 'cloister-sandbox-pods'" in refused.message
    assert said in refused.message


@pytest.mark.parametrize(
    ("label", "value", "said"),
    [
        (names.MANAGED_BY_LABEL, "somebody", "labels that the network policies select"),
        (names.ENVIRONMENT_LABEL, None, "labels that the network policies select"),
        (names.NETWORK_LABEL, "host", "must be none, gateway or unrestricted"),
    ],
)
async def test_a_pod_that_no_network_policy_selects_is_refused(
    plane: ControlPlane, label: str, value: str | None, said: str
) -> None:
    body = pod("minimal")
    body["metadata"]["labels"].pop(label, None)
    if value:
        body["metadata"]["labels"][label] = value
    refused = await ask(plane, OPERATOR, "POST", PODS + DRY, body)
    assert refused is not None
    assert said in refused.message


@pytest.mark.parametrize(
    ("network", "addresses", "admitted"),
    [("gateway", 1, True), ("gateway", 2, False), ("none", 1, False), ("unrestricted", 1, False)],
)
async def test_only_a_sandbox_with_hosts_knows_names_and_of_one_address(
    plane: ControlPlane, network: str, addresses: int, admitted: bool
) -> None:
    body = pod("minimal")
    body["metadata"]["labels"][names.NETWORK_LABEL] = network
    if network == "unrestricted":
        body["spec"]["dnsConfig"] = {"nameservers": ["8.8.8.8"]}
    body["spec"]["hostAliases"] = [
        {"ip": f"10.96.0.{each}", "hostnames": ["api.example.com", "a.example.org"]}
        for each in range(1, addresses + 1)
    ]
    refused = await ask(plane, OPERATOR, "POST", PODS + DRY, body)
    assert (refused is None) is admitted, refused


@pytest.mark.parametrize(
    ("servers", "admitted"),
    [(["8.8.8.8"], True), (["2001:4860:4860::8888"], True), (["10.96.0.10"], False),
     (["169.254.20.10"], False), (["8.8.8.8", "192.168.1.1"], False), (["fd00::10"], False),
     (["100.100.100.200"], False)],
)  # fmt: skip
async def test_an_unrestricted_sandbox_asks_public_resolvers_only(
    plane: ControlPlane, servers: list[str], admitted: bool
) -> None:
    body = pod("minimal")
    body["metadata"]["labels"][names.NETWORK_LABEL] = "unrestricted"
    body["spec"]["dnsConfig"] = {"nameservers": servers}
    refused = await ask(plane, OPERATOR, "POST", PODS + DRY, body)
    assert (refused is None) is admitted, refused


async def test_root_in_a_user_namespace_is_admitted_and_only_with_its_five_capabilities(
    plane: ControlPlane,
) -> None:
    five = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]
    body = pod("minimal")
    spec = body["spec"]
    spec["securityContext"] |= {"runAsUser": 0, "runAsGroup": 0, "fsGroup": 0}
    del spec["securityContext"]["runAsNonRoot"]
    own = spec["containers"][0]["securityContext"]
    own |= {"capabilities": {"drop": ["ALL"], "add": five}, "readOnlyRootFilesystem": False}
    assert await ask(plane, OPERATOR, "POST", PODS + DRY, body) is None
    spec |= {"hostUsers": True, "runtimeClassName": "gvisor"}
    assert await ask(plane, OPERATOR, "POST", PODS + DRY, body) is None
    own["capabilities"]["add"] = [*five, "NET_ADMIN"]
    refused = await ask(plane, OPERATOR, "POST", PODS + DRY, body)
    assert refused is not None
    assert "more capabilities" in refused.message
