"""The table of behaviours says what is tested, and everything in it is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "unit" / "sandbox" / "behaviours"
ROW = re.compile(r"\| (\d+) \| `([=~!])` \| (.+) \| (.+) \|")


def test_each_behaviour_has_a_row_and_its_tests() -> None:
    rows = ROW.findall((ROOT / "docs" / "behaviours.md").read_text())
    assert [int(number) for number, *_ in rows] == list(range(1, 70))
    listed = {
        f"test_row_{int(number):02}_{name}"
        for number, *_, names in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    written = {
        name
        for path in TESTS.glob("test_*.py")
        for name in re.findall(r"def (test_row_\w+)\(", path.read_text())
    }
    assert listed == written


def names(tree: ast.AST) -> set[str]:
    """The names that an expression uses, and as `both.x` what it takes of the two."""
    found = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
    return found | {
        f"both.{each.attr}"
        for each in ast.walk(tree)
        if isinstance(each, ast.Attribute)
        and isinstance(each.value, ast.Name)
        and each.value.id == "both"
    }


def assigned(node: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    """The names that get a value; of several names those that get one each."""
    for target in node.targets:
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        for to, value in pairs:
            yield from ((name, value) for name in names(to))


def compares(test: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a test demands that something of ours equals the same of the reference."""
    if names(test) & {"both.same", "both.says", "both.fails"}:  # these do
        return True
    sides = {
        "ours": {"both.ours", "both.result", "both.root"},
        "theirs": {"both.theirs", "both.reference"},
    }
    for node in ast.walk(test):
        if isinstance(node, ast.Assign):
            for name, value in assigned(node):
                for own in sides.values():
                    if names(value) & own:
                        own.add(name)
    return any(
        all(
            any(names(each) & own for each in (node.left, *node.comparators))
            for own in sides.values()
        )
        and all(isinstance(each, ast.Eq) for each in node.ops)
        for node in ast.walk(test)
        if isinstance(node, ast.Compare)
    )


def test_rows_that_are_the_same_are_compared_with_the_reference() -> None:
    rows = ROW.findall((ROOT / "docs" / "behaviours.md").read_text())
    same = tuple(f"test_row_{int(number):02}_" for number, tag, *_ in rows if tag == "=")
    alone = [
        node.name
        for path in TESTS.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith(same)
        and not compares(node)
    ]
    assert alone == []


@pytest.mark.parametrize(
    ("body", "equal"),
    [
        ("both.says('x', 'bash')", True),
        ("theirs = both.theirs('bash'); assert both.ours('bash') == theirs", True),
        (
            "a, b = both.root / 'log', both.reference.root / 'log'; assert a.read() == b.read()",
            True,
        ),
        ("assert both.theirs('bash') == 'late'; assert both.ours('bash') == 'kept'", False),
        ("a, b = both.theirs('bash'), both.ours('bash'); assert a == 'x'; assert b == 'x'", False),
        ("assert both.theirs('bash') != both.ours('bash')", False),
    ],
)
def test_only_equality_with_the_reference_counts(body: str, equal: bool) -> None:
    (function,) = ast.parse(f"def test_row_01_x(both): {body}").body
    assert isinstance(function, ast.FunctionDef)
    assert compares(function) is equal
