"""The alerts and the dashboard: about metrics that exist, and saying what they should."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloister_gateway import metrics as gateway
from cloister_operator import metrics
from support.alerts import ALERTS, RULES, promtool
from support.chart import CHART, render

DASHBOARD = CHART / "files" / "dashboard.json"
_NAME = re.compile(r"\b(?:cloister|process)_\w+")
_MATCHED = re.compile(r"\b((?:cloister|process)_\w+)\s*\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPED = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")
SCRAPED = {"instance", "job", "pod"}
"""Labels that Prometheus adds."""


def known() -> dict[str, set[str]]:
    """Every series that the operator and the egress gateways serve, with its labels."""
    found: dict[str, set[str]] = {}
    for registry in (metrics.REGISTRY, gateway.REGISTRY):
        # What has no labels yet has no samples either; its definition knows them.
        for collector, names in registry._collector_to_names.items():
            labels = set(getattr(collector, "_labelnames", ()))
            for name in names:
                found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
        for family in registry.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set(sample.labels))
    return found


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels that show something."""
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [each for each in found if each["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every query of alerts and panels, with what it is for."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("what", "expr"), list(queries()), ids=lambda each: each[:30])
def test_queries_ask_for_what_there_is(what: str, expr: str) -> None:
    series = known()
    named = set(_NAME.findall(expr))
    assert named, what
    assert named <= series.keys(), named - series.keys()
    for name, matchers in _MATCHED.findall(expr):
        asked = set(_LABEL.findall(re.sub(r'"[^"]*"', '""', matchers)))
        assert asked <= series[name], f"{name} has no {asked - series[name]}"
    grouped = {
        label.strip() for each in _GROUPED.findall(expr) for label in each.split(",") if label
    }
    assert grouped <= SCRAPED.union(*(series[name] for name in named))


def test_the_series_are_known() -> None:
    series = known()
    assert series["cloister_claim_seconds_bucket"] == {"start", "le"}
    assert series["cloister_claims_total"] == {"namespace", "environment", "start", "outcome"}
    assert "cloister_claims_made_up" not in series


def test_every_metric_is_on_the_dashboard() -> None:
    """What nobody looks at need not be measured."""
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    families = {each.name for each in metrics.REGISTRY.collect()}
    ours = {each for each in families if each.startswith("cloister_")}
    assert {each for each in ours if each not in shown} == set()


def test_each_operators_series_are_added_up_or_told_apart() -> None:
    """Two operators run: a query that keeps what Prometheus adds has two lines of one name."""
    for panel in panels():
        for target in panel["targets"]:
            expr, legend = target["expr"], target["legendFormat"]
            groups = re.findall(r"\b(?:sum|max|min|count)(?: by \(([^)]*)\))? ?\(", expr)
            labels = {each.strip() for each in (groups[0] if groups else "instance").split(",")}
            if target.get("format") != "table":
                assert set(re.findall(r"{{(\w+)}}", legend)) == labels - {"le", ""}, panel["title"]


def test_the_series_keep_their_namespaces() -> None:
    """Without honorLabels Prometheus calls each series' namespace that of the operator."""
    rendered = render(
        *("--set", "metrics.serviceMonitor.enabled=true"),
        *("--set", "networkPolicy.metricsFrom[0].podSelector.matchLabels.app=prometheus"),
    )
    (endpoint,) = rendered.one("ServiceMonitor", "cloister")["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
    labels = {label for name, found in known().items() if "gateway_" in name for label in found}
    assert "namespace" not in labels, "egress gateways say which namespace, too"
    assert rendered.one("ServiceMonitor", "cloister-egress-gateway")


def test_promtool_takes_alerts_and_panels(tmp_path: Path) -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(ALERTS))
    exprs = [target["expr"] for panel in panels() for target in panel["targets"]]
    records = [
        {
            "record": f"panel:{index}",
            "expr": re.sub(r"\$__\w+", "5m", expr).replace("$", ""),
        }
        for index, expr in enumerate(exprs)
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    assert f"{len(exprs)} rules found" in promtool("check", "rules", str(path))


def test_panels_do_not_overlap_and_use_the_chosen_data_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
        sources = [panel["datasource"], *(each["datasource"] for each in panel["targets"])]
        assert {each["uid"] for each in sources} == {"${datasource}"}
    titles = [each["title"] for each in panels()]
    assert len(titles) == len(set(titles))
