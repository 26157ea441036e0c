"""values.yaml, its schema, its README and the file that sets every value say the same."""

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml

from support.chart import ALL_VALUES, CHART, ChartRefusedError, render

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of the schema."""
    yield path, schema
    for key, each in schema.get("properties", {}).items():
        yield from nodes(each, f"{path}.{key}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def test_generated_parts_are_fresh(chart_readme: ModuleType) -> None:
    stale = [
        path.name for path, text in chart_readme.generated().items() if path.read_text() != text
    ]
    assert not stale, f"run `make generate`: {stale}"


def test_a_value_without_a_comment_is_noticed(chart_readme: ModuleType) -> None:
    with pytest.raises(chart_readme.ChartError, match=r"a\.c has no comment"):
        list(chart_readme.values("a:\n  # Why.\n  b: 1\n  c: 2\n"))


def test_every_object_of_ours_in_the_schema_is_closed() -> None:
    # Kubernetes' own types are checked by the API server.
    foreign = {
        *(".resources", ".nodeSelector", ".tolerations[]", ".affinity", ".podAnnotations"),
        *(
            f".egress.gateway.{each}"
            for each in (
                *(
                    "resources.front",
                    "resources.names",
                    "resources.sni",
                    "resources.byName",
                    "resources.agent",
                ),
                *("nodeSelector", "tolerations[]", "affinity", "podAnnotations"),
            )
        ),
        *(".metrics.serviceMonitor.labels", ".metrics.prometheusRule.labels"),
        *(".metrics.grafanaDashboard.labels", ".global"),
        *(".networkPolicy.sessionsFrom[]", ".networkPolicy.metricsFrom[]"),
    }
    open_ones = {
        path
        for path, node in nodes(SCHEMA)
        if node.get("type") == "object" and node.get("additionalProperties") is not False
    }
    assert open_ones == foreign


def test_every_value_is_set_by_the_file_that_sets_every_value(chart_readme: ModuleType) -> None:
    given = yaml.safe_load(ALL_VALUES.read_text())
    for value in chart_readme.values((CHART / "values.yaml").read_text()):
        node = given
        for key in value.path:
            assert key in node, f"{'.'.join(value.path)} is not in ci/all-values.yaml"
            node = node[key]


def test_every_value_that_is_not_empty_by_default_is_needed() -> None:
    """Who upgrades with the values of a release of before has none for what is newer than that: it
    would be no number, no list, or off.
    """
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    missing = []
    for path, node in nodes(SCHEMA):
        default = defaults
        for key in path.split(".")[1:]:
            default = default.get(key) or {} if isinstance(default, dict) else {}
        for key in node.get("properties", {}):
            if key not in default:
                continue
            # What Kubernetes says of, such as resources, may be left away as a whole.
            each, ours = default[key], "properties" in node["properties"][key]
            if (ours or not isinstance(each, dict)) and each not in ("", [], None):
                missing += [f"{path}.{key}"] if key not in node.get("required", []) else []
    assert not missing


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("egress.gateway.limits.unreadMiB=null", "unreadMiB"),
        ("admission=null", "admission"),
        ("admission.required=null", "required"),
        ("replicas=2", "replicas"),
        ("sandbox.imagee=x", "imagee"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.digest=abc", "digest"),
        ("sandboxNamespaces=null", "sandboxNamespaces"),
        ("sandboxNamespaces[0].name=A_B", "name"),
        ("sandboxNamespaces[0].podSecurity=privileged", "podSecurity"),
        ("sandbox.allowedProfiles={privileged}", "allowedProfiles"),
        ("egress.packageManagers.mirrors.pip=http://mirror.example.com", "pip"),
        ("egress.packageManagers.mirrors.conda=https://mirror.example.com", "conda"),
        ("egress.packageManagers.hosts={https://mirror.example.com}", "hosts"),
        ("egress.unrestricted.nameservers={dns.example.com}", "nameservers"),
        ("egress.extraRanges={10.0.0.0}", "extraRanges"),
        ("egress.proof.intervalSeconds=0", "intervalSeconds"),
        ("egress.proof.skip={everything}", "skip"),
        ("sandbox.userNamespaces=sometimes", "userNamespaces"),
        ("sandbox.allowedImages[0]=a\\,b", "allowedImages"),
        ("sandbox.defaults.memory=lots", "memory"),
        ("sessions.endedTTLSeconds=-1", "endedTTLSeconds"),
        ("logging.level=LOUD", "level"),
        ("egress.gateway.nameservers[0]=dns.example", "nameservers"),
        ("egress.gateway.replicas=0", "replicas"),
    ],
)
def test_wrong_values_are_refused_with_their_name(value: str, field: str) -> None:
    with pytest.raises(ChartRefusedError, match=field):
        render("--set", value)
