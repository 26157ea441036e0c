"""The tables in docs/exec.md have what the exec server can answer, and nothing else."""

import ast
import re
from pathlib import Path

from cloister._server_info import FEATURES
from cloister_sandbox import errors, unpacking
from cloister_sandbox.services.runtime import CAPABILITIES

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "sandbox-image" / "src" / "cloister_sandbox"
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.CallError)
}
# Which it is depends on why the file cannot be opened: `failures.cannot_open` takes one of these.
CANNOT_OPEN = {"NotFound", "Forbidden", "WrongState"}


def documented() -> list[tuple[str, str]]:
    """Status and reason of each reason in the table."""
    text = (ROOT / "docs" / "exec.md").read_text()
    (table,) = re.findall(r"\| status \| reason \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    found = []
    for line in table.splitlines():
        status, reasons, advice = (cell.strip() for cell in line.strip("| ").split(" | "))
        assert advice
        found += [(status.strip("`"), each) for each in re.findall(r"`(\w+)`", reasons)]
    return found


def calls(path: Path) -> list[ast.Call]:
    """Every call of a file."""
    return [each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.Call)]


def raised() -> set[tuple[str, str]]:
    """Status and reason of each error that the server's code makes."""
    found = {(errors.InvalidField.code.name, errors.InvalidField("f", "m").reason)}
    unread = []
    for path in SOURCES.rglob("*.py"):
        for node in calls(path):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            first = node.args[0] if node.args else None
            given = first.value if isinstance(first, ast.Constant) else ""
            if name == "InvalidField":
                continue
            if given == "CANNOT_OPEN":
                found |= {(KINDS[each].code.name, given) for each in CANNOT_OPEN}
            elif name in KINDS and isinstance(given, str) and given.isupper():
                found.add((KINDS[name].code.name, given))
            elif name in KINDS:
                unread.append(f"{path.name}:{node.lineno}")
    assert unread == [], "their reasons are not written where they are raised"
    return found


def test_every_error_has_its_advice() -> None:
    rows = documented()
    assert len(rows) == len(set(rows)), "a reason is there twice"
    assert set(rows) == raised()


def kinds_of(base: type) -> set[str]:
    """The names of the errors that are of this kind."""
    return {name for name, kind in KINDS.items() if issubclass(kind, base) and kind is not base}


def test_what_is_missing_or_in_the_way_is_named() -> None:
    """The first of the metadata does: ResourceInfo and PreconditionFailure are made of it."""
    resources, preconditions = kinds_of(errors._OfResource), kinds_of(errors._Precondition)
    unnamed, odd = [], []
    for path in SOURCES.rglob("*.py"):
        for node in calls(path):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            first = node.keywords[0].arg if node.keywords else None
            where = f"{path.name}:{node.lineno}"
            if name in resources and first not in errors.RESOURCES:
                unnamed.append(where)
            if name in preconditions and first is not None and first not in errors.RESOURCES:
                odd.append(where)
    assert unnamed == [], "no resource"
    assert odd == [], "metadata that do not begin with what the error is about"


def test_every_bound_is_listed() -> None:
    text = (ROOT / "docs" / "exec.md").read_text()
    (table,) = re.findall(r"\| bound \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    listed: list[str] = []
    for line in table.splitlines():
        bound, much = line.strip("| ").split(" | ")
        names = re.findall(r"`([\w-]+)`", bound)
        assert much
        listed += names
    raised_bounds = {
        str(node.args[3].value)
        for path in SOURCES.rglob("*.py")
        for node in calls(path)
        if isinstance(node.func, ast.Name)
        and node.func.id == "Busy"
        and isinstance(node.args[3], ast.Constant)
    }
    assert sorted(listed) == sorted(raised_bounds)


def test_the_kinds_of_files_that_cannot_be_opened_are_these() -> None:
    (function,) = (
        node
        for node in ast.walk(ast.parse((SOURCES / "failures.py").read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "cannot_open"
    )
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    assert names & set(KINDS) - {"CallError"} == CANNOT_OPEN


def test_the_client_knows_capabilities_that_there_are() -> None:
    assert set(FEATURES) < set(CAPABILITIES)


def test_every_capability_is_explained() -> None:
    text = (ROOT / "docs" / "exec.md").read_text()
    (table,) = re.findall(r"\| capability \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    cells = [line.strip("| ").split(" | ")[0] for line in table.splitlines()]
    names = re.findall(r"`([\w.]+)`", " ".join(cells))
    # The kernel that the tests run on may lack this one.
    assert sorted(names) == sorted({*CAPABILITIES, "openat2"})


def test_the_bounds_of_headers_are_told() -> None:
    text = " ".join((ROOT / "docs" / "exec.md").read_text().split())
    one, all_of_one = (bound // 1024 for bound in (unpacking._MAX_HEADER, unpacking._MAX_HEADERS))
    assert f"extended header of more than {one} KiB" in text
    assert f"more than {all_of_one} KiB of headers for one member" in text
