"""docs/invariants.md names every rule that tests/support/invariants.py checks."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _longest(text: ast.expr) -> str:
    """The longest piece of a string that is the same in each of its uses."""
    pieces = text.values if isinstance(text, ast.JoinedStr) else [text]
    fixed = [each.value for each in pieces if isinstance(each, ast.Constant)]
    return max((str(each).strip(" (),") for each in fixed), key=len)


def violations() -> Iterator[str]:
    """How each violation reads, without the names in it."""
    module = ast.parse((ROOT / "tests" / "support" / "invariants.py").read_text())
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "violated":
            found = _longest(node.args[0])
            # What only passes on another function's words is found there.
            if found != "session":
                yield found
        if isinstance(node, ast.Yield | ast.Return) and isinstance(node.value, ast.JoinedStr):
            yield _longest(node.value)


def test_every_violation_is_documented() -> None:
    rows = [
        line.split("|")[1]
        for line in (ROOT / "docs" / "invariants.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    named = [each.strip() for row in rows for each in row.split("`")[1::2]]
    found = set(violations())
    assert len(found) > 10
    missing = [each for each in sorted(found) if not any(name in each for name in named)]
    assert not missing, missing
