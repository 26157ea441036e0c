"""What the chart makes of its values: snapshots, refusals, and what a cluster will hold of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloister_operator import names, settings
from support.chart import (
    ALL_VALUES,
    CHART,
    CLUSTER,
    ROOT,
    ChartRefusedError,
    Rendered,
    helm,
    render,
)

GOLDEN = ROOT / "tests" / "golden" / "chart"
SNAPSHOTS = {
    # The CRDs are written by hand, in full; a snapshot would only repeat them.
    "default": ("--set", "crds.enabled=false"),
    "all-values": ("-f", str(ALL_VALUES)),
}


def order(each: dict[str, Any]) -> tuple[str, str, str]:
    meta = each["metadata"]
    return each["kind"], meta.get("namespace", ""), meta["name"]


def snapshot(rendered: Rendered) -> str:
    """The objects in a fixed order, without the text of files that they hold."""
    script = (CHART / "files" / "helm_test.py").read_text()
    objects = sorted(rendered.objects, key=order)
    for pod in rendered.of("Pod"):
        command = pod["spec"]["containers"][0]["command"]
        assert command[-1] == script
        command[-1] = "<files/helm_test.py>"
    for rule in rendered.of("PrometheusRule"):
        assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
        rule["spec"] = "<files/alerts.yaml>"
    for each in rendered.of("ConfigMap"):
        assert each["data"] == {"cloister.json": (CHART / "files" / "dashboard.json").read_text()}
        each["data"] = "<files/dashboard.json>"
    return yaml.safe_dump_all(objects, sort_keys=True, width=100)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_snapshot(name: str, update_golden: bool) -> None:
    got = snapshot(render(*SNAPSHOTS[name]))
    path = GOLDEN / f"{name}.yaml"
    if update_golden:
        path.write_text(got)
    assert got == path.read_text(), "if the change is meant, run `make golden` and read the diff"


@pytest.mark.parametrize("options", [(), ("-f", str(ALL_VALUES))], ids=["default", "all-values"])
def test_helm_lint_finds_nothing(options: tuple[str, ...]) -> None:
    out = helm("lint", str(CHART), "--strict", "--kube-version", "1.36.0", *options)
    assert "[WARNING]" not in out
    assert "[ERROR]" not in out


def test_values_of_the_previous_release_are_taken() -> None:
    previous = render("-f", str(CHART / "ci" / "previous-values.yaml"))
    assert previous.one("Deployment", "cloister-operator")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["sandboxNamespaces[0].name=cloister-system"], "holds the CA's key"),
        (["sandboxNamespaces[0].name=default"], "belongs to the cluster"),
        (["sandboxNamespaces[0].name=kube-system"], "belongs to the cluster"),
        (["sandboxNamespaces[0].name=a", "sandboxNamespaces[1].name=a"], '"a" is there twice'),
        (
            ["sandboxNamespaces[0].name=a", "sandbox.workerNamespaces[0]=a"],
            "must not reach each other",
        ),
        (
            ["sandboxNamespaces[0].name=a", "sandboxNamespaces[0].podSecurity=restricted"],
            "needs create",
        ),
        (
            [
                "rbac.workers=false",
                "rbac.workerSubjects[0].kind=User",
                "rbac.workerSubjects[0].name=a",
            ],
            "needs rbac.workers",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(values: list[str], reason: str) -> None:
    options = [part for each in values for part in ("--set", each)]
    with pytest.raises(ChartRefusedError, match=reason):
        render(*options)


def test_a_service_monitor_needs_its_kind() -> None:
    arguments = ("template", "cloister", str(CHART), "--kube-version", "1.36.0")
    with pytest.raises(ChartRefusedError, match="needs the Prometheus operator"):
        helm(*arguments, "--set", "metrics.serviceMonitor.enabled=true")


def test_a_service_monitor_needs_somebody_who_may_read() -> None:
    with pytest.raises(ChartRefusedError, match=r"needs networkPolicy\.metricsFrom"):
        render("--set", "metrics.serviceMonitor.enabled=true")


def test_crds_stay_unless_they_are_not_to() -> None:
    for crd in render().of("CustomResourceDefinition"):
        assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    for crd in render("--set", "crds.keep=false").of("CustomResourceDefinition"):
        assert "annotations" not in crd["metadata"]


def pod_specs(rendered: Rendered) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in rendered.of("Deployment"):
        yield each["metadata"]["name"], each["spec"]["template"]["spec"]
    for each in rendered.of("Pod"):
        yield each["metadata"]["name"], each["spec"]


@pytest.mark.parametrize("options", SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_pods_pass_pod_security_restricted(options: tuple[str, ...]) -> None:
    found = dict(pod_specs(render(*options)))
    assert sorted(found) == ["cloister-egress-gateway", "cloister-helm-test", "cloister-operator"]
    for spec in found.values():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(
            set(volume) == {"name", "emptyDir"} or volume["name"] == "identity"
            for volume in spec["volumes"]
        )
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not {"privileged", "procMount", "runAsUser", "runAsNonRoot"} & set(context)
            assert not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("options", SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_the_operator_takes_its_settings(options: tuple[str, ...]) -> None:
    operator = render(*options).one("Deployment", "cloister-operator")
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    environ = {each["name"]: each.get("value", "10.0.0.1") for each in container["env"]}
    assert set(environ) == {f"CLOISTER_{each.upper()}" for each in settings.Settings.model_fields}
    taken = settings.load(environ)
    if options == SNAPSHOTS["all-values"]:
        assert taken.sandbox_namespaces == ("agents-sandboxes", "research", "builders")
        assert taken.sandbox_user_namespaces is False
        assert taken.ended_session_ttl_seconds == 2_592_000
        assert taken.worker_namespaces == ("agents",)
        assert taken.allowed_runtime_classes == ("gvisor", "kata")
        assert taken.runtime_classes_without_user_namespaces == ("gvisor",)
    else:
        assert taken.sandbox_namespaces == ("cloister-sandboxes",)
        assert taken.sandbox_user_namespaces is True
        assert taken.allowed_images == ()


def test_names_are_those_that_the_operator_and_clients_use() -> None:
    rendered = render()
    ports = {each["port"] for each in rendered.one("Service", "cloister")["spec"]["ports"]}
    assert ports == {names.SESSIONS_PORT, names.HTTP_PORT}
    labels = rendered.one("Namespace", "cloister-sandboxes")["metadata"]["labels"]
    assert labels[names.SANDBOXES_LABEL] == "enabled"
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    # helm sets this label to its own name; the operator's objects are found by its value.
    assert labels[names.MANAGED_BY_LABEL] != names.MANAGED_BY


def test_the_services_selector_finds_the_operator_only() -> None:
    rendered = render()
    selector = rendered.one("Service", "cloister")["spec"]["selector"].items()
    operator = rendered.one("Deployment", "cloister-operator")["spec"]["template"]["metadata"][
        "labels"
    ].items()
    test = rendered.one("Pod", "cloister-helm-test")["metadata"]["labels"].items()
    assert selector <= operator
    assert not selector <= test


def test_only_the_tests_pod_is_a_hook() -> None:
    hooks = [each for each in render().objects if "helm.sh/hook" in str(each["metadata"])]
    assert [order(each) for each in hooks] == [("Pod", "cloister-system", "cloister-helm-test")]


def test_nothing_of_the_test_is_left_when_it_is_not_wanted() -> None:
    rendered = render("--set", "tests.enabled=false")
    assert not [each for each in rendered.objects if "helm-test" in each["metadata"]["name"]]


def notes(directory: Path, *options: str) -> str:
    """What helm says after an installation; `helm template` alone leaves it out."""
    copy = directory / "chart"
    shutil.copytree(CHART, copy)
    shutil.move(copy / "templates" / "NOTES.txt", copy / "notes.txt")
    probe = '{"kind": "Notes", "text": {{ tpl (.Files.Get "notes.txt") . | toJson }}}'
    (copy / "templates" / "notes.yaml").write_text(probe)
    out = helm(
        *("template", "cloister", str(copy), "-n", "cloister-system", *CLUSTER),
        *("--show-only", "templates/notes.yaml", *options),
    )
    text: str = yaml.safe_load(out)["text"]
    return text


def test_notes_tell_three_commands(tmp_path: Path) -> None:
    text = notes(tmp_path)
    assert [line[:2] for line in text.splitlines() if line[:1].isdigit()] == ["1.", "2.", "3."]
    assert "helm test cloister -n cloister-system" in text
    assert "| kubectl apply -n cloister-sandboxes -f -" in text
    assert "kubectl wait environment/first-session -n cloister-sandboxes" in text
    assert "kubectl label namespace" not in text
    assert "kubectl delete crd" in text


def test_notes_tell_how_a_namespace_takes_part(tmp_path: Path) -> None:
    text = notes(
        tmp_path, "--set", "sandboxNamespaces[0].name=research", "--set", "crds.keep=false"
    )
    assert "kubectl label namespace research cloister.dev/sandboxes=enabled" in text
    assert "kubectl delete crd" not in text
