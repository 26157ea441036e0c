"""What the alerts say: each is raised by the series that it is for, and by no others."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.alerts import ALERTS, RULES, promtool

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
