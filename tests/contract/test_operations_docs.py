"""docs/operations.md: every reason, condition, metric, alert and field of the log is in it."""

import ast
import re
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry, Metric

from cloister_gateway import metrics as gateways
from cloister_operator import errors, logs, metrics
from cloister_operator.api import conditions

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
ALERTS = ROOT / "charts" / "cloister" / "files" / "alerts.yaml"
_CODE = re.compile(r"`([^`\n]+)`")


def rows(heading: str, name: str = r"\w+") -> list[str]:
    """The first cells, in code, of the tables under a heading of the operations manual."""
    (text,) = re.findall(
        rf"^## {heading}\n(.*?)(?=^## |\Z)", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL
    )
    return re.findall(rf"^\| `({name})` \|", text, re.MULTILINE)


def check_rows(heading: str, documented: list[str], present: set[str]) -> None:
    """Every name of the code has one row, and no row is without code."""
    where = f"docs/operations.md, {heading}"
    missing, foreign = present - set(documented), set(documented) - present
    twice = {each for each in documented if documented.count(each) > 1}
    assert not missing, f"{where} has no row for {sorted(missing)}"
    assert not foreign, f"{where} has rows for what is not there: {sorted(foreign)}"
    assert not twice, f"{where} has two rows for {sorted(twice)}"


TYPES = {
    conditions.READY,
    conditions.POOL_READY,
    conditions.NETWORK_ENFORCED,
    conditions.ADMISSION_ENFORCED,
    conditions.GIT_FETCHED,
    conditions.HAS_PLACE,
    conditions.SUSPENDED,
}
"""The types of conditions. The last one is the reason of one, too."""


def reasons() -> set[str]:
    """The reasons of conditions, which Events and failures have as well."""
    return {
        value
        for name, value in vars(conditions).items()
        if name.isupper() and isinstance(value, str) and value not in TYPES - {conditions.SUSPENDED}
    }


def test_every_reason_has_its_advice() -> None:
    assert len(reasons()) > 20
    check_rows("Reasons", rows("Reasons"), reasons())


def test_every_condition_is_named_above_its_reasons() -> None:
    (text,) = re.findall(
        r"^## Reasons\n(.*?)^\| ", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL
    )
    assert set(re.findall(r"\*\*(\w+)\*\*", text)) == TYPES
    found = set()
    for path in (ROOT / "operator" / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding":
                found.add(ast.unparse(node.args[0]).removeprefix("conditions."))
    named = {getattr(conditions, each) for each in found if hasattr(conditions, each)}
    assert named == TYPES


PLACES = {
    "Failure": 0,
    "Finding": 2,
    "PermanentError": 0,
    "SessionPlan": 2,
    "_record": 1,
    "record": 2,
}
"""Of reasons among the arguments of calls."""


def test_reasons_are_where_they_can_be_listed() -> None:
    """A reason that is written where it is used would be in no table."""
    # The last one is of a call that is wrong, and of no object.
    found, known = [], {"", *reasons(), "InvalidArgument"}
    for path in (ROOT / "operator" / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name not in PLACES:
                continue
            given = node.args[PLACES[name] :][:1]
            given += [each.value for each in node.keywords if each.arg == "reason"]
            for each in given:
                if isinstance(each, ast.Constant) and each.value not in known:
                    found.append(f"{path.name}:{node.lineno}: {each.value!r}")
    assert found == []


def series_of(registry: CollectorRegistry) -> dict[str, Metric]:
    """Our own metrics, under the names that Prometheus has for them."""
    return {
        f"{each.name}_total" if each.type == "counter" else each.name: each
        for each in registry.collect()
        if each.name.startswith("cloister_")
    }


def test_every_metric_is_explained() -> None:
    series = series_of(metrics.REGISTRY)
    assert len(series) >= 20
    check_rows("Metrics", rows("Metrics"), set(series))
    for name, each in series.items():
        assert each.documentation.endswith("."), f"{name}'s help is no sentence"


def test_every_metric_of_a_gateway_is_explained() -> None:
    page = (ROOT / "egress-gateway" / "README.md").read_text()
    named = {each for each in _CODE.findall(page) if each.startswith("cloister_gateway_")}
    assert named == set(series_of(gateways.REGISTRY))


def outcomes(kind: type[errors.OperatorError]) -> set[str]:
    """The words that the errors of a kind have for themselves."""
    return {kind.outcome}.union(*map(outcomes, kind.__subclasses__()))


def test_every_outcome_of_a_write_is_explained_and_alerts_know_no_others() -> None:
    (row,) = re.findall(
        r"^\| `cloister_api_writes_total` \|.*$", OPERATIONS.read_text(), re.MULTILINE
    )
    # Of the root's own word there is none: it is a bug's.
    missing = (
        outcomes(errors.OperatorError) - {errors.OperatorError.outcome} - set(_CODE.findall(row))
    )
    assert not missing, f"docs/operations.md does not say what outcome {missing} of a write is"
    failing = {
        each.outcome for each in (errors.TransientError, errors.RefusedError, errors.LostError)
    }
    (words,) = re.findall(r'cloister_api_writes_total\{outcome=~"(.*?)"', ALERTS.read_text())
    assert set(words.split("|")) == {*failing, "throttled"}


def test_every_metric_has_its_labels_explained() -> None:
    text = OPERATIONS.read_text()
    for collector, names_of in metrics.REGISTRY._collector_to_names.items():
        found = [str(each) for each in names_of if f"| `{each}` |" in text]
        for each in found:
            (cell,) = re.findall(rf"^\| `{each}` \| (.*?) ?\|", text, re.MULTILINE)
            labels = list(getattr(collector, "_labelnames", ()))
            assert re.findall(r"`(\w+)`", cell) == labels, each


def test_every_alert_has_its_advice() -> None:
    rules = yaml.safe_load(ALERTS.read_text())
    alerts = {each["alert"] for group in rules["groups"] for each in group["rules"]}
    check_rows("Alerts", rows("Alerts"), alerts)
    named = set(re.findall(r"docs/(\w+\.md)", yaml.safe_dump(rules)))
    assert named == {"operations.md"}


def test_the_fields_of_a_log_line_are_explained() -> None:
    (text,) = re.findall(r"^## Logs\n(.*?)^## ", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    assert {*logs.FIELDS, "time", "level", "logger", "message", "error"} <= set(_CODE.findall(text))
