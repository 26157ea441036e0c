"""Bring the comments of the chart's values.yaml into its README.md and values.schema.json.

values.yaml is where a value is described; the schema adds types, which are written by hand.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent.parent / "charts" / "cloister"
BEGIN = "<!-- values: written by `make generate` from values.yaml -->"
END = "<!-- end of values -->"
_KEY = re.compile(r"( *)([A-Za-z]\w*):")


@dataclass(frozen=True)
class Value:
    """A value of the chart that somebody may set."""

    path: tuple[str, ...]
    description: str
    default: Any


class ChartError(Exception):
    """values.yaml and what belongs to it do not fit; the message names the value."""


def values(text: str) -> Iterator[Value]:
    """The documented values of a values.yaml; raises ChartError for one without a comment."""
    parsed = yaml.safe_load(text)
    described = _comments(text)
    for leaf in _leaves(parsed):
        if not any(leaf[:length] in described for length in range(1, len(leaf) + 1)):
            raise ChartError(f"{'.'.join(leaf)} has no comment in values.yaml")
    for path, description in described.items():
        default = parsed
        for key in path:
            default = default[key]
        yield Value(path, description, default)


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """The comment directly above each key, by the key's path."""
    found: dict[tuple[str, ...], str] = {}
    path: tuple[str, ...] = ()
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        match = _KEY.match(line)
        if match:
            path = (*path[: len(match[1]) // 2], match[2])
            if comment:
                found[path] = " ".join(comment)
        comment = []
    return found


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of everything that is not a map with something in it."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path


def table(found: list[Value]) -> str:
    """The values as a Markdown table."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for each in found:
        default = json.dumps(each.default).replace("|", "\\|")
        meaning = each.description.replace("|", "\\|")
        rows.append(f"| `{'.'.join(each.path)}` | `{default}` | {meaning} |")
    return "\n".join(rows)


def readme(current: str, found: list[Value]) -> str:
    """The README with the table of values between its marks renewed."""
    before, _, rest = current.partition(BEGIN)
    _, marked, after = rest.partition(END)
    if not marked:
        raise ChartError(f"README.md lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def schema(current: str, found: list[Value]) -> str:
    """The schema with every value's description; raises ChartError for a value it lacks."""
    parsed = json.loads(current)
    for each in found:
        node = parsed
        for key in each.path:
            node = node.get("properties", {}).get(key)
            if node is None:
                raise ChartError(f"{'.'.join(each.path)} is not in values.schema.json")
        node["description"] = each.description
    return json.dumps(parsed, indent=2) + "\n"


def generated(chart: Path = CHART) -> dict[Path, str]:
    """What the generated files of a chart must contain, by path; raises ChartError."""
    found = list(values((chart / "values.yaml").read_text()))
    return {
        chart / name: make((chart / name).read_text(), found)
        for name, make in (("README.md", readme), ("values.schema.json", schema))
    }


def main() -> int:
    try:
        for path, text in generated().items():
            path.write_text(text)
    except ChartError as error:
        print(f"chart_readme: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
