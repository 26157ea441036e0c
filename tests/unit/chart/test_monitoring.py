"""The alerts and the dashboard: about metrics that exist, and saying what they should."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloister_gateway import metrics as gateway
from cloister_operator import metrics
from support.chart import CHART, render, tool

ALERTS = CHART / "files" / "alerts.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
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


def promtool(*arguments: str) -> str:
    """Run promtool; the answer is what it prints."""
    done = subprocess.run(
        [tool("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


# --- what the alerts say -------------------------------------------------------------------------

OF = 'namespace="ns",environment="py"'


@dataclass(frozen=True)
class Case:
    """Series by the minute, in promtool's notation, and whose alert they raise."""

    alert: str
    series: dict[str, str]
    raised: dict[str, str] | None = field(default_factory=dict)
    """The labels of the alert; None: there is none."""
    minutes: int = 60

    def written(self) -> dict[str, Any]:
        """As promtool reads it."""
        selector = f'ALERTS{{alertname="{self.alert}",alertstate="firing"}}'
        severity = next(each for each in RULES if each["alert"] == self.alert)["labels"]
        expected: list[dict[str, Any]] = []
        if self.raised is not None:
            labels = {"alertname": self.alert, "alertstate": "firing", **severity, **self.raised}
            text = ",".join(f'{key}="{value}"' for key, value in labels.items())
            expected = [{"labels": f"ALERTS{{{text}}}", "value": 1}]
        return {
            "interval": "1m",
            "input_series": [
                {"series": scraped(name), "values": values} for name, values in self.series.items()
            ],
            "promql_expr_test": [
                {"expr": selector, "eval_time": f"{self.minutes}m", "exp_samples": expected}
            ],
        }


def scraped(series: str) -> str:
    """With labels that Prometheus adds, which no alert may hand on: another operator leads one day,
    and who is called about an Environment is not to look at the operator's pod.
    """
    name, _, labels = series.rstrip("}").partition("{")
    added = [f'{key}="b"' for key in ("instance", "pod") if f"{key}=" not in labels]
    return f"{name}{{{','.join([*added, *filter(None, [labels])])}}}"


def latencies(name: str, labels: str, slow: bool) -> dict[str, str]:
    """A histogram whose every value is above 2 s, or below 10 ms."""
    made = {
        f'{name}_bucket{{{labels}le="{edge}"}}': "0x60" if slow else "0+60x60"
        for edge in ("0.01", "2")
    }
    return made | {f'{name}_bucket{{{labels}le="{edge}"}}': "0+60x60" for edge in ("5", "+Inf")}


MINE = {"namespace": "ns", "environment": "py"}
LAG, WRITE, CLAIM = (
    "cloister_event_loop_lag_seconds",
    "cloister_api_write_seconds",
    "cloister_claim_seconds",
)
BUILD = 'cloister_build_info{instance="a"}'
STARTED = 'process_start_time_seconds{instance="a"}'
CASES = [
    Case("CloisterOperatorMissing", {}),
    Case("CloisterOperatorMissing", {BUILD: "1x60"}, None),
    Case("CloisterNoLeader", {'cloister_leader{pod="a"}': "0x60"}),
    Case("CloisterNoLeader", {'cloister_leader{pod="a"}': "0x60", "cloister_leader": "1x60"}, None),
    Case("CloisterTwoLeaders", {'cloister_leader{pod="a"}': "1x60", "cloister_leader": "1x60"}),
    Case("CloisterTwoLeaders", {"cloister_leader": "1x60"}, None),
    Case("CloisterOperatorRestarts", {BUILD: "1x60", STARTED: "1x40 2x5 3x5 4x9"}),
    Case("CloisterOperatorRestarts", {BUILD: "1x60", STARTED: "1x40 2x19"}, None),
    Case("CloisterEventLoopLags", latencies(LAG, "", slow=True)),
    Case("CloisterEventLoopLags", latencies(LAG, "", slow=False), None),
    Case("CloisterCaExpires", {"cloister_ca_expiry_timestamp_seconds": "7000000x60"}),
    Case("CloisterCaExpires", {"cloister_ca_expiry_timestamp_seconds": "9000000x60"}, None),
    Case("CloisterQueueStuck", {"cloister_queue_age_seconds": "0+60x60"}),
    Case("CloisterQueueStuck", {"cloister_queue_age_seconds": "20x60"}, None),
    Case(
        "CloisterReconcilesFail",
        {
            'cloister_reconciles_total{kind="session",outcome="ok"}': "0+1x60",
            'cloister_reconciles_total{kind="session",outcome="error"}': "0+2x60",
            'cloister_reconciles_total{kind="environment",outcome="ok"}': "0+2x60",
        },
        {"kind": "session"},
    ),
    Case(
        "CloisterReconcilesFail",
        {
            'cloister_reconciles_total{kind="session",outcome="ok"}': "0+1x60",
            'cloister_reconciles_total{kind="session",outcome="conflict"}': "0+9x60",
        },
        None,
    ),
    Case(
        "CloisterApiWritesFail",
        {
            'cloister_api_writes_total{outcome="ok"}': "0+60x60",
            'cloister_api_writes_total{outcome="throttled"}': "0+10x60",
        },
    ),
    Case(
        "CloisterApiWritesFail",
        {
            'cloister_api_writes_total{outcome="ok"}': "0+60x60",
            'cloister_api_writes_total{outcome="conflict"}': "0+60x60",
        },
        None,
    ),
    Case("CloisterApiWritesSlow", latencies(WRITE, 'verb="patch",', slow=True)),
    Case("CloisterApiWritesSlow", latencies(WRITE, 'verb="patch",', slow=False), None),
    Case(
        "CloisterSessionsApiFails",
        {
            'cloister_sessions_api_calls_total{code="OK"}': "0+60x60",
            'cloister_sessions_api_calls_total{code="UNAVAILABLE"}': "0+6x60",
        },
    ),
    Case(
        "CloisterSessionsApiFails",
        {
            'cloister_sessions_api_calls_total{code="OK"}': "0+60x60",
            'cloister_sessions_api_calls_total{code="NOT_FOUND"}': "0+60x60",
        },
        None,
    ),
    # One in six fails, of a handful.
    Case(
        "CloisterSessionsApiFails",
        {
            'cloister_sessions_api_calls_total{code="OK"}': "0+1x60",
            'cloister_sessions_api_calls_total{code="UNAVAILABLE"}': "0x40 1x3 2x3 3x3 4x3 5x3",
        },
        None,
    ),
    Case(
        "CloisterNetworkNotEnforced",
        {f'cloister_environment_condition{{condition="NetworkEnforced",{OF}}}': "0x60"},
        MINE,
    ),
    Case(
        "CloisterNetworkNotEnforced",
        {f'cloister_environment_condition{{condition="Ready",{OF}}}': "0x60"},
        None,
    ),
    Case(
        "CloisterEgressGatewaysMissing",
        {
            'cloister_egress_gateways{state="ready"}': "2x30 0x30",
            'cloister_egress_gateways{state="behind"}': "0x60",
            'cloister_egress_gateways{state="starting"}': "2x60",
        },
    ),
    Case(
        "CloisterEgressGatewaysMissing",
        {
            'cloister_egress_gateways{state="ready"}': "1x60",
            'cloister_egress_gateways{state="starting"}': "1x60",
        },
        None,
    ),
    Case("CloisterEgressGatewayBehind", {'cloister_egress_gateways{state="behind"}': "1x60"}),
    Case(
        "CloisterEgressGatewayBehind",
        {'cloister_egress_gateways{state="behind"}': "0x50 1x1 0x9"},
        None,
    ),
    Case(
        "CloisterEnvironmentNotReady",
        {f'cloister_environment_condition{{condition="Ready",{OF}}}': "0x60"},
        MINE,
    ),
    Case(
        "CloisterEnvironmentNotReady",
        {f'cloister_environment_condition{{condition="Ready",{OF}}}': "0x50 1x9"},
        None,
    ),
    Case(
        "CloisterPoolEmpty",
        {
            f"cloister_pool_wanted_pods{{{OF}}}": "2x60",
            f'cloister_pool_pods{{state="warm",{OF}}}': "0x60",
        },
        MINE,
    ),
    Case(
        "CloisterPoolEmpty",
        {
            f"cloister_pool_wanted_pods{{{OF}}}": "2x60",
            f'cloister_pool_pods{{state="warm",{OF}}}': "1x60",
            'cloister_pool_wanted_pods{namespace="ns",environment="cold"}': "0x60",
        },
        None,
    ),
    Case("CloisterPodsFail", {f"cloister_pool_failed_starts{{{OF}}}": "0x40 1 2 3x20"}, MINE),
    Case("CloisterPodsFail", {f"cloister_pool_failed_starts{{{OF}}}": "0x40 1x10 2x10"}, None),
    Case("CloisterSessionsWait", {f'cloister_sessions{{phase="Pending",{OF}}}': "3x60"}, MINE),
    Case(
        "CloisterSessionsWait",
        {
            f'cloister_sessions{{phase="Pending",{OF}}}': "3x60",
            f'cloister_claims_total{{start="cold",outcome="ok",{OF}}}': "0+1x60",
        },
        None,
    ),
    Case(
        "CloisterAdmissionNotEnforced",
        {'cloister_admission_enforced{namespace="ns"}': "0x60"},
        {"namespace": "ns"},
    ),
    Case(
        "CloisterAdmissionNotEnforced",
        {'cloister_admission_enforced{namespace="ns"}': "1x60"},
        None,
    ),
    Case(
        "CloisterSessionsFail",
        {
            'cloister_failures_total{kind="session",reason="NodeLost"}': "0+1x60",
            f'cloister_claims_total{{outcome="ok",{OF}}}': "0+10x60",
        },
        {"reason": "NodeLost"},
    ),
    Case(
        "CloisterSessionsFail",
        {'cloister_failures_total{kind="session",reason="NodeLost"}': "0x50 14x10"},
        {"reason": "NodeLost"},
    ),
    Case(
        "CloisterSessionsFail",
        {
            'cloister_failures_total{kind="session",reason="NodeLost"}': "0+1x60",
            f'cloister_claims_total{{outcome="ok",{OF}}}': "0+100x60",
        },
        None,
    ),
    Case("CloisterClaimsSlow", latencies(CLAIM, 'start="warm",', slow=True)),
    Case("CloisterClaimsSlow", latencies(CLAIM, 'start="cold",', slow=True), None),
    Case(
        "CloisterClaimsCold",
        {
            f"cloister_pool_wanted_pods{{{OF}}}": "2x60",
            f'cloister_claims_total{{start="cold",outcome="ok",{OF}}}': "0+2x60",
            f'cloister_claims_total{{start="warm",outcome="ok",{OF}}}': "0+1x60",
        },
        MINE,
    ),
    Case(
        "CloisterClaimsCold",
        {
            f"cloister_pool_wanted_pods{{{OF}}}": "0x60",
            f'cloister_claims_total{{start="cold",outcome="ok",{OF}}}': "0+2x60",
        },
        None,
    ),
]


@pytest.mark.long
def test_alerts_are_raised_when_they_should_be_and_not_otherwise(tmp_path: Path) -> None:
    for raised in (True, False):
        tried = {each.alert for each in CASES if (each.raised is not None) is raised}
        assert tried == {each["alert"] for each in RULES}
    path = tmp_path / "alerts_test.yaml"
    tests = [each.written() for each in CASES]
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def test_promtool_notices_an_alert_that_is_not_raised(tmp_path: Path) -> None:
    path = tmp_path / "alerts_test.yaml"
    wrong = Case("CloisterQueueStuck", {"cloister_queue_age_seconds": "1x60"}).written()
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [wrong]}))
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", str(path))


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
