"""What the operator creates, against golden files, and by the fields that Pod Security wants."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloister_operator import manifests
from cloister_operator.api.environment import EnvironmentObject
from cloister_operator.api.session import SessionObject
from cloister_operator.manifests import SandboxPod
from cloister_operator.plan.packages import Packages
from cloister_operator.recipe import Around, build
from cloister_operator.settings import Settings
from support.operator_objects import pod as sandbox
from support.operator_objects import settings

JSON = dict[str, Any]
GOLDEN = Path(__file__).parents[2] / "golden" / "operator"
CLAIMS = ("PersistentVolumeClaim",)
RANGES = ("10.0.0.0/8", "34.1.2.3/32", "2600:1f18::/48")
"""The cluster's own, some of them out in the public."""
AROUND = Around("10.96.0.7:3128", Packages(("packages.example",), {"PIP_INDEX_URL": "https://x"}))
CASES = sorted(each.parent.name for each in GOLDEN.glob("*/environment.yaml"))


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which nobody reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def platform(case: str) -> Settings:
    """The settings of a case: the full one uses what the platform may decide."""
    if case != "everything":
        return settings(copied_labels=("cost-centre",))
    return settings(
        copied_labels=("cost-centre",),
        allowed_runtime_classes=("gvisor",),
        allowed_tolerations=("sandboxes",),
        allowed_priority_classes=("sandboxes",),
        allowed_extended_resources=("*",),
        worker_namespaces=("workers", "more-workers"),
        sandbox_user_namespaces=False,
        sandbox_image_pull_policy="Always",
    )


def render(case: str, **changes: Any) -> list[JSON]:
    """All that is made for the Environment of a case, and for its Session if it has one;
    `changes`: of the settings.
    """
    folder, given = GOLDEN / case, platform(case).model_copy(update=changes)
    environment = EnvironmentObject.parse(
        yaml.safe_load((folder / "environment.yaml").read_text("utf-8"))
    )
    recipe = build(environment, {}, given, AROUND)
    session = None
    if (folder / "session.yaml").exists():
        session = SessionObject.parse(yaml.safe_load((folder / "session.yaml").read_text("utf-8")))
    name, identity = f"{environment.metadata.name}-0-aaaa", ""
    claims, claim = [], None
    if session and session.status.workspace_claim:
        name, identity = session.status.workspace_claim, f"{environment.metadata.name}-bbbb"
        claim = name
        uid = session.metadata.uid
        owner = session.owner_reference()
        claims.append(manifests.workspace_claim(environment, claim, owner, uid))
    elif environment.spec.workspace.persistent:
        claim = name
        owner = manifests.pod_reference(sandbox(name))
        claims.append(manifests.workspace_claim(environment, claim, owner))
    pod = SandboxPod(name, environment, recipe, session, claim, identity)
    namespace = environment.metadata.namespace
    mounts = sandbox(
        name,
        namespace=namespace,
        uid="uid-of-pod",
        environment=environment.metadata.name,
        identity=identity or name,
    )
    made = [
        *claims,
        *manifests.network_policies(namespace, given, RANGES),
        manifests.recipe_secret(environment, recipe),
        manifests.sandbox_pod(pod, given),
        manifests.identity_secret(mounts, b"crt", b"key", b"ca"),
    ]
    if session:
        made.append(manifests.credentials_secret(session, b"crt", b"key", b"ca"))
    return made


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, update_golden: bool) -> None:
    path = GOLDEN / case / "expected.yaml"
    made = yaml.dump_all(render(case), Dumper=_Dumper, sort_keys=False, width=100)
    if update_golden:
        path.write_text(made, "utf-8")
    assert path.read_text("utf-8") == made


def pods(case: str) -> list[JSON]:
    return [each for each in render(case) if each["kind"] == "Pod"]


@pytest.mark.parametrize("case", [each for each in CASES if each != "rootish"])
def test_pods_pass_pod_security_restricted(case: str) -> None:
    """The fields of the Kubernetes Pod Security Standards, level restricted."""
    (pod,) = pods(case)
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        assert not spec.get(field)
    assert not spec.get("initContainers")
    assert not spec.get("ephemeralContainers")
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not spec["securityContext"].get("sysctls")
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context.get("privileged")
        assert "procMount" not in context
        assert context.get("runAsNonRoot", True) is True
        assert "seccompProfile" not in context
        assert all("hostPort" not in port for port in container["ports"])
    assert {kind for each in spec["volumes"] for kind in each if kind != "name"} <= {
        "emptyDir",
        "persistentVolumeClaim",
        "secret",
    }


@pytest.mark.parametrize("case", CASES)
def test_pods_get_nothing_of_the_cluster(case: str) -> None:
    (pod,) = pods(case)
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["dnsPolicy"] == "None"
    if case == "unrestricted":
        # Not the cluster's, which would tell what Services there are.
        assert spec["dnsConfig"] == {
            "nameservers": ["1.1.1.1", "8.8.8.8"],
            "searches": [],
            "options": [{"name": "ndots", "value": "1"}],
        }
    else:
        assert spec["dnsConfig"] == {"nameservers": ["127.0.0.1"]}
    given = [each["name"] for each in spec["containers"][0]["env"]]
    assert given == ["CLOISTER_POD_UID"] + ["CLOISTER_KEPT_ROOTS"] * (case == "resumed_session")
    read_only = spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert read_only is (case != "rootish")
    writable = [m for m in spec["containers"][0]["volumeMounts"] if not m.get("readOnly")]
    volumes = {each["name"]: each for each in spec["volumes"]}
    claims = {each["metadata"]["name"]: each for each in render(case) if each["kind"] in CLAIMS}
    for mount in writable:
        volume = volumes[mount["name"]]
        if "persistentVolumeClaim" in volume:
            claim = claims[volume["persistentVolumeClaim"]["claimName"]]
            assert claim["spec"]["resources"]["requests"]["storage"]
        else:
            assert volume["emptyDir"]["sizeLimit"], "no bound on what it may write"


@pytest.mark.parametrize("case", CASES)
def test_everything_is_labelled_and_goes_with_its_owner(case: str) -> None:
    for each in render(case):
        assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "cloister"
        if each["kind"] != "NetworkPolicy":
            (owner,) = each["metadata"]["ownerReferences"]
            assert owner["controller"] is True
            assert owner["uid"]


def test_a_pools_pod_belongs_to_its_environment_and_a_cold_one_to_its_session() -> None:
    (warm,), (cold,) = pods("minimal"), pods("cold_session")
    assert warm["metadata"]["ownerReferences"][0]["kind"] == "Environment"
    assert warm["metadata"]["labels"]["cloister.dev/state"] == "starting"
    assert "cloister.dev/session" not in warm["metadata"]["labels"]
    assert cold["metadata"]["ownerReferences"][0]["kind"] == "Session"
    assert cold["metadata"]["labels"]["cloister.dev/state"] == "claimed"
    assert cold["metadata"]["labels"]["cloister.dev/session"] == cold["metadata"][
        "ownerReferences"
    ][0]["uid"]  # fmt: skip


def test_a_pools_workspace_goes_with_its_pod_and_a_sessions_with_the_session() -> None:
    (warm,), (resumed,) = pods("persistent"), pods("resumed_session")
    claims = {
        case: next(each for each in render(case) if each["kind"] in CLAIMS)
        for case in ("persistent", "resumed_session")
    }
    pools, sessions = claims["persistent"], claims["resumed_session"]
    assert pools["metadata"]["name"] == warm["metadata"]["name"]
    assert pools["metadata"]["ownerReferences"][0]["kind"] == "Pod"
    assert "storageClassName" not in pools["spec"]
    assert sessions["metadata"]["name"] == resumed["metadata"]["name"]
    assert sessions["metadata"]["ownerReferences"] == resumed["metadata"]["ownerReferences"]
    assert sessions["spec"]["storageClassName"] == "fast"


def test_labels_of_people_never_replace_the_operators() -> None:
    folder = GOLDEN / "minimal"
    raw = yaml.safe_load((folder / "environment.yaml").read_text("utf-8"))
    raw["metadata"]["labels"] = {"cloister.dev/state": "warm", "cloister.dev/recipe": "x", "a": "b"}
    environment = EnvironmentObject.parse(raw)
    given = settings(copied_labels=("cloister.dev/state", "cloister.dev/recipe", "a"))
    recipe = build(environment, {}, given)
    labels = manifests.sandbox_pod(SandboxPod("p", environment, recipe), given)["metadata"][
        "labels"
    ]
    assert labels["cloister.dev/state"] == "starting"
    assert labels["cloister.dev/recipe"] == recipe.hash
    assert labels["a"] == "b"


def test_every_mount_has_its_volume_and_every_file_its_key() -> None:
    made = render("everything")
    (pod,) = (each for each in made if each["kind"] == "Pod")
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    assert {each["name"] for each in mounts} == set(volumes)
    assert len({each["mountPath"] for each in mounts}) == len(mounts)
    secret = next(each for each in made if each["metadata"]["name"].startswith("everything-"))
    items = {each["path"]: each["key"] for each in volumes["files"]["secret"]["items"]}
    assert set(items.values()) <= set(secret["data"])
    for mount in mounts:
        if mount["name"] == "files":
            assert mount["subPath"] in items


def policies(given: Settings, ranges: tuple[str, ...] | None = RANGES) -> dict[str, JSON]:
    made = manifests.network_policies("ns", given, ranges)
    assert {each["metadata"]["namespace"] for each in made} == {"ns"}
    return {each["metadata"]["name"]: each["spec"] for each in made}


def test_the_network_is_closed_both_ways_and_opened_for_one_port() -> None:
    made = policies(settings())
    # The first is there before any that opens something.
    assert next(iter(made)) == "cloister-default-deny"
    deny, ingress = made["cloister-default-deny"], made["cloister-exec-ingress"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert ingress["policyTypes"] == ["Ingress"]
    (rule,) = ingress["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 7443}]
    # An empty list of callers would mean everybody; one entry is the operator.
    (caller,) = rule["from"]
    assert caller["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "cloister-system"
    }
    assert caller["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "operator"}


def test_what_is_opened_is_opened_for_pods_of_ours_with_one_label() -> None:
    made = policies(settings())
    for name, network in (
        ("cloister-egress-gateway", "gateway"),
        ("cloister-egress-unrestricted", "unrestricted"),
    ):
        assert made[name]["policyTypes"] == ["Egress"]
        assert made[name]["podSelector"] == {
            "matchLabels": {
                "app.kubernetes.io/managed-by": "cloister",
                "cloister.dev/network": network,
            }
        }
    # Nothing selects the label of those that reach nothing.
    assert "none" not in str(made)
    (rule,) = made["cloister-egress-gateway"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 3128}]
    # One peer with both selectors: as two peers each would do.
    (peer,) = rule["to"]
    assert set(peer) == {"namespaceSelector", "podSelector"}


def test_while_the_clusters_addresses_are_not_known_the_internet_is_not_opened() -> None:
    assert "cloister-egress-unrestricted" not in policies(settings(), None)


def test_a_platform_that_forbids_the_internet_closes_it() -> None:
    for ranges in (None, RANGES):
        made = policies(settings(egress_unrestricted=False), ranges)
        assert made["cloister-egress-unrestricted"]["egress"] == []


def test_the_internet_is_opened_without_the_port_of_mail_servers() -> None:
    (rule,) = policies(settings())["cloister-egress-unrestricted"]["egress"]
    opened = [(each["protocol"], each.get("port"), each.get("endPort")) for each in rule["ports"]]
    assert opened == [("TCP", 1, 24), ("TCP", 26, 65535), ("UDP", None, None)]
    (rule,) = policies(settings(egress_smtp=True))["cloister-egress-unrestricted"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP"}, {"protocol": "UDP"}]


@pytest.mark.parametrize(
    ("case", "address", "given"),
    [
        ("unrestricted", "10.244.0.9", False),
        ("unrestricted", "fd00:10:244::9", True),
        ("allowed_hosts", "fd00:10:244::9", True),
        ("minimal", "fd00:10:244::9", False),
    ],
)
def test_tools_have_ipv6_where_pods_first_address_is_one(
    case: str, address: str, given: bool
) -> None:
    """Of both families the proof tries the one that the operator has: the other stays closed."""
    (pod,) = (each for each in render(case, pod_ip=address) if each["kind"] == "Pod")
    names = [each["name"] for each in pod["spec"]["containers"][0]["env"]]
    assert ("CLOISTER_IPV6" in names) is given


def test_ranges_that_cover_everything_leave_nothing_open() -> None:
    made = policies(settings(), ("0.0.0.0/0", "::/0"))
    # A rule without peers would let everything through.
    assert made["cloister-egress-unrestricted"]["egress"] == []


def test_rootish_has_what_apt_needs_and_no_more() -> None:
    """And passes Pod Security `baseline`."""
    (pod,) = pods("rootish")
    spec = pod["spec"]
    assert spec["hostUsers"] is False
    assert spec["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "fsGroup": 0,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {
            "drop": ["ALL"],
            "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"],
        },
        "readOnlyRootFilesystem": False,
    }
    strict = pods("minimal")[0]["spec"]
    same = ("automountServiceAccountToken", "enableServiceLinks", "volumes", "restartPolicy")
    assert {key: spec[key] for key in same if key != "volumes"} == {
        key: strict[key] for key in same if key != "volumes"
    }
    assert container["resources"] == strict["containers"][0]["resources"]


def test_programs_learn_of_the_gateways_and_whoever_leads_learns_of_the_hosts() -> None:
    made = render("allowed_hosts")
    (pod,) = (each for each in made if each["kind"] == "Pod")
    assert pod["metadata"]["labels"]["cloister.dev/network"] == "gateway"
    assert pod["metadata"]["annotations"] == {
        "cloister.dev/egress-hosts": "*.example.com,api.example.org,mcp.example.net,"
        "packages.example,xn--bcher-kva.example"
    }
    secret = next(each for each in made if each["metadata"]["name"].startswith("allowed-"))
    env = json.loads(base64.b64decode(secret["data"]["recipe.json"]))["env"]
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        # A proxy of the Environment's own would lead nowhere.
        assert env.pop(name) == "http://10.96.0.7:3128"
    for name in ("NO_PROXY", "no_proxy"):
        assert env.pop(name) == "localhost,127.0.0.1,::1"
    assert env == {
        # The Environment's own wins where it is a tool's setting.
        "JAVA_TOOL_OPTIONS": "-Xmx256m",
        "NODE_USE_ENV_PROXY": "1",
        "PIP_INDEX_URL": "https://x",
    }
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    (apt,) = (each for each in mounts if each["mountPath"].startswith("/etc/apt/"))
    assert base64.b64decode(secret["data"][apt["subPath"]]).decode().splitlines() == [
        'Acquire::http::Proxy "http://10.96.0.7:3128";',
        'Acquire::https::Proxy "http://10.96.0.7:3128";',
    ]


def test_pods_that_need_no_gateway_know_of_none() -> None:
    for case in ("minimal", "unrestricted"):
        made = render(case)
        assert "3128" not in str(pods(case))
        secret = next(each for each in made if "recipe.json" in each.get("data", {}))
        assert json.loads(base64.b64decode(secret["data"]["recipe.json"]))["env"] == {}
