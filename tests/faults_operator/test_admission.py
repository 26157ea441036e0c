"""The chart's admission policies on a real API server: what gets into a sandbox namespace.

Without Pod Security, so that what is refused is refused by the policies themselves. Nobody here
lacks a right for what is asked: the API server asks the policies all the same.
"""

import copy
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
import yaml

from cloister_operator import names
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

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


class Refused(NamedTuple):
    """An answer that is no success."""

    status: int
    message: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """An API server with the namespaces and the policies of the chart, which are in effect."""
    async with control_plane(tmp_path_factory.mktemp("plane") / "plane") as made:
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


# What becomes of a pod.


@pytest_asyncio.fixture(loop_scope="module")
async def running(plane: ControlPlane) -> AsyncIterator[str]:
    """The path of a pod that is there."""
    body = pod("minimal")
    body["metadata"]["annotations"] = {names.EGRESS_HOSTS: "example.com"}
    body["metadata"].pop("ownerReferences", None)
    path = f"{PODS}/{body['metadata']['name']}"
    assert await ask(plane, OPERATOR, "POST", PODS, body) is None
    yield path
    await plane.admin.call("DELETE", f"{path}?gracePeriodSeconds=0")


MERGE = "application/merge-patch+json"


def labelled(**labels: str | None) -> JSON:
    changed = {f"cloister.dev/{key}": value for key, value in labels.items()}
    return {"metadata": {"labels": changed}}


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


# What it mounts.

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
