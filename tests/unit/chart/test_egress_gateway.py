"""The egress gateways as the chart installs them."""

import dataclasses
import json

import pytest

from cloister_gateway.settings import PREFIX, Settings
from cloister_operator import names
from cloister_operator.api.gateway import AGENT
from support.chart import ALL_VALUES, JSON, Rendered, render

OPTIONS = pytest.mark.parametrize(
    "options", [(), ("-f", str(ALL_VALUES))], ids=["default", "all-values"]
)
NAME = names.EGRESS_GATEWAY
PARTS = ["front", "names", "sni", "by-name", AGENT]


def pod(rendered: Rendered) -> JSON:
    found: JSON = rendered.one("Deployment", NAME)["spec"]["template"]
    return found


def containers(rendered: Rendered) -> dict[str, JSON]:
    return {each["name"]: each for each in pod(rendered)["spec"]["containers"]}


@OPTIONS
def test_its_parts_are_those_of_its_image(options: tuple[str, ...]) -> None:
    found = containers(render(*options))
    assert list(found) == PARTS
    for name, each in found.items():
        assert each["args"] == [name]
        environ = {one["name"]: one["value"] for one in each["env"]}
        known = {f"{PREFIX}{one.name.upper()}" for one in dataclasses.fields(Settings)}
        assert set(environ) <= known
        Settings.load(environ)


def test_only_the_agent_has_its_key_and_may_write_who_may_reach_what() -> None:
    for name, each in containers(render()).items():
        mounts = {one["name"]: one.get("readOnly", False) for one in each["volumeMounts"]}
        assert ("identity" in mounts) == (name == AGENT)
        assert mounts["state"] == (name != AGENT)
        # Its own configuration, and nobody else's.
        assert set(PARTS) & set(mounts) == {name}


def test_no_token_reaches_it() -> None:
    rendered = render()
    spec = pod(rendered)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert rendered.one("ServiceAccount", NAME)["automountServiceAccountToken"] is False
    subjects = [
        subject["name"]
        for kind in ("RoleBinding", "ClusterRoleBinding")
        for each in rendered.of(kind)
        for subject in each["subjects"]
    ]
    assert spec["serviceAccountName"] == NAME
    assert NAME not in subjects


def test_names_are_those_that_the_operator_uses() -> None:
    rendered = render()
    labels = pod(rendered)["metadata"]["labels"]
    assert labels[names.COMPONENT_LABEL] == names.EGRESS_COMPONENT
    service = rendered.one("Service", NAME)["spec"]
    assert service["selector"].items() <= labels.items()
    leads = {each["port"]: each["targetPort"] for each in service["ports"]}
    front = {each["name"]: each["containerPort"] for each in containers(rendered)["front"]["ports"]}
    # NetworkPolicies may see the Service's port or the pod's.
    for port in (names.EGRESS_PORT, names.EGRESS_BY_NAME_PORT):
        assert front[leads[port]] == port
    ports = [one["containerPort"] for one in containers(rendered)[AGENT]["ports"]]
    assert names.EGRESS_AGENT_PORT in ports
    (secret,) = (each["secret"] for each in pod(rendered)["spec"]["volumes"] if "secret" in each)
    assert secret["secretName"] == NAME


@OPTIONS
def test_it_reaches_name_servers_alone_until_the_operator_lets_it_out(
    options: tuple[str, ...],
) -> None:
    policies = [
        each
        for each in render(*options).of("NetworkPolicy")
        if each["spec"]["podSelector"]["matchLabels"].get(names.COMPONENT_LABEL)
        == names.EGRESS_COMPONENT
    ]
    (policy,) = policies
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    (egress,) = policy["spec"]["egress"]
    assert {each["port"] for each in egress["ports"]} == {53}
    peers = egress["to"]
    if options:
        assert [each["ipBlock"]["cidr"] for each in peers] == ["192.0.2.53/32", "2001:db8::53/128"]
        assert pod(render(*options))["spec"]["dnsPolicy"] == "None"
    else:
        # One peer: of that namespace and with that label.
        assert [set(each) for each in peers] == [{"namespaceSelector", "podSelector"}]


def test_who_reaches_it_where() -> None:
    (policy,) = [each for each in render().of("NetworkPolicy") if each["metadata"]["name"] == NAME]
    by_port = {each["ports"][0]["port"]: each["from"] for each in policy["spec"]["ingress"]}
    assert set(by_port) == {3128, 7444}
    (rule,) = [each for each in policy["spec"]["ingress"] if each["ports"][0]["port"] == 3128]
    assert [each["port"] for each in rule["ports"]] == [3128, 443]
    (sandboxes,) = by_port[3128]
    assert sandboxes["podSelector"]["matchLabels"] == {names.NETWORK_LABEL: names.NETWORK_GATEWAY}
    assert sandboxes["namespaceSelector"]["matchExpressions"][0]["values"] == ["cloister-sandboxes"]
    (operator,) = by_port[7444]
    assert operator == {
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": "cloister",
                names.COMPONENT_LABEL: "operator",
            }
        }
    }


def test_who_reads_metrics_is_the_platforms_choice_and_else_nobody() -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "watch"}}}
    given = ("--set-json", f"networkPolicy.metricsFrom={json.dumps([prometheus])}")
    for options, wanted in (((), []), (given, [[prometheus]])):
        rendered = render(*options)
        for name, port in ((NAME, 8081), ("cloister-operator", 8080)):
            (policy,) = (x for x in rendered.of("NetworkPolicy") if x["metadata"]["name"] == name)
            rules = [
                each["from"]
                for each in policy["spec"]["ingress"]
                if port in {one["port"] for one in each["ports"]}
            ]
            assert rules == wanted


def test_who_calls_the_sessions_api_may_be_listed() -> None:
    def rule(*options: str) -> JSON:
        (policy,) = (
            x
            for x in render(*options).of("NetworkPolicy")
            if x["metadata"]["name"] == "cloister-operator"
        )
        (found,) = (x for x in policy["spec"]["ingress"] if x["ports"][0]["port"] == 8443)
        assert len(found["ports"]) == 1
        return dict(found)

    assert "from" not in rule()
    workers = {"ipBlock": {"cidr": "198.18.0.0/15"}}
    operators, test, *others = rule(
        "--set-json", f"networkPolicy.sessionsFrom={json.dumps([workers])}"
    )["from"]
    assert others == [workers]
    assert operators["podSelector"]["matchLabels"][names.COMPONENT_LABEL] == "operator"
    assert test["podSelector"]["matchLabels"] == {names.COMPONENT_LABEL: "helm-test"}


def test_it_is_ready_when_its_agent_says_so_and_drains_before_it_ends() -> None:
    found = containers(render())
    assert found[AGENT]["readinessProbe"]["httpGet"]["path"] == "/readyz"
    grace = pod(render())["spec"]["terminationGracePeriodSeconds"]
    for each in found.values():
        assert int(each["lifecycle"]["preStop"]["exec"]["command"][1]) < grace


def test_one_gateway_is_not_kept_from_being_drained() -> None:
    budgets = render("--set", "egress.gateway.replicas=1").of("PodDisruptionBudget")
    assert NAME not in {each["metadata"]["name"] for each in budgets}
    assert NAME in {each["metadata"]["name"] for each in render().of("PodDisruptionBudget")}


def test_tools_that_know_of_no_proxy_can_be_turned_away() -> None:
    rendered = render("--set", "egress.gateway.byName=false")
    assert list(containers(rendered)) == [each for each in PARTS if each != "by-name"]
    assert "by-name" not in {each["name"] for each in pod(rendered)["spec"]["volumes"]}
    for each in containers(rendered).values():
        environ = {one["name"]: one["value"] for one in each["env"]}
        assert not Settings.load(environ).by_name
    assert 443 not in {each["port"] for each in rendered.one("Service", NAME)["spec"]["ports"]}
    policies = [x for x in rendered.of("NetworkPolicy") if x["metadata"]["name"] == NAME]
    ports = {p["port"] for x in policies for i in x["spec"]["ingress"] for p in i["ports"]}
    assert 443 not in ports
    operator = rendered.one("Deployment", "cloister-operator")["spec"]["template"]["spec"]
    environ = {each["name"]: each.get("value") for each in operator["containers"][0]["env"]}
    assert environ["CLOISTER_EGRESS_BY_NAME"] == "false"


def test_without_gateways_nothing_of_them_is_there() -> None:
    rendered = render("--set", "egress.gateway.enabled=false")
    assert NAME not in {each["metadata"]["name"] for each in rendered.objects}
    operator = rendered.one("Deployment", "cloister-operator")["spec"]["template"]["spec"]
    environ = {each["name"]: each.get("value") for each in operator["containers"][0]["env"]}
    assert environ["CLOISTER_EGRESS_GATEWAY"] == "false"
