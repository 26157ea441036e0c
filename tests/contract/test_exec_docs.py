"""The tables in docs/exec.md have what the exec server can answer, and nothing else."""

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

from cloister._server_info import FEATURES
from cloister_api import wire
from cloister_sandbox import calls as called
from cloister_sandbox import (
    capture,
    changes,
    edits,
    errors,
    finds,
    jobs,
    leftovers,
    overflow,
    paths,
    server,
    texts,
    unpacking,
    walks,
)
from cloister_sandbox.authorize import HEAVY
from cloister_sandbox.lanes import Lanes
from cloister_sandbox.services.runtime import CAPABILITIES
from cloister_sandbox.toolset import read, search

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "sandbox-image" / "src" / "cloister_sandbox"
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.CallError)
}
# Which it is depends on why the file cannot be opened: `failures.cannot_open` takes one of these.
CANNOT_OPEN = {"NotFound", "Forbidden", "WrongState"}


def page() -> str:
    """The page's text, each line end a blank."""
    return " ".join((ROOT / "docs" / "exec.md").read_text().split())


def table(*titles: str) -> list[list[str]]:
    """The rows of the one table whose columns begin with these."""
    text = (ROOT / "docs" / "exec.md").read_text()
    head = "".join(rf"\| {title} " for title in titles)
    (found,) = re.findall(rf"{head}\|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in found.splitlines()]


def documented() -> list[tuple[str, str]]:
    """Status and reason of each reason in the table."""
    found = []
    for status, reasons, advice in table("status", "reason"):
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


def test_metadata_are_these_and_no_others() -> None:
    listed = {
        key.strip("`"): set(re.findall(r"`(\w+)`", reasons))
        for key, _, reasons in table("metadata")
    }
    sent = defaultdict(set, {"field": {"INVALID_FIELD"}})
    for path in SOURCES.rglob("*.py"):
        for node in calls(path):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            first = node.args[0] if node.args else None
            given = first.value if isinstance(first, ast.Constant) else ""
            # `failures.cannot_open` takes the kind from a table.
            if name in KINDS.keys() - {"InvalidField"} or given == "CANNOT_OPEN":
                for each in node.keywords:
                    sent[str(each.arg)].add(str(given))
    assert listed == sent


def values(path: Path, node: ast.expr | None) -> set[int]:
    """What an error's bound amounts to; nothing where the machine has it."""
    if node is None:
        return set()
    if isinstance(node, ast.Name):
        module = ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts)
        return {getattr(importlib.import_module(module), node.id)}
    assert ast.unparse(node) == "self._bound"
    lanes = Lanes()
    # Searches are bounded before they come to theirs.
    return {each._bound for each in (lanes.quick, lanes.slow, lanes.bulk, lanes.watch)}


def bounds() -> dict[str, set[int]]:
    """Each bound that the server's code names, and its values."""
    found: dict[str, set[int]] = defaultdict(set)
    for path in SOURCES.rglob("*.py"):
        for node in calls(path):
            if isinstance(node.func, ast.Name) and node.func.id == "Busy":
                inside = ast.walk(node.args[3])
                names = [each.value for each in inside if isinstance(each, ast.Constant)]
                assert names, f"{path.name}:{node.lineno}: its name is not written there"
                for name in names:
                    found[str(name)] |= values(path, node.args[4] if node.args[4:] else None)
    return found


def test_every_bound_is_listed() -> None:
    listed = {}
    for bounds_of_row, much in table("bound"):
        assert much
        for name in re.findall(r"`([\w-]+)`", bounds_of_row):
            assert name not in listed
            listed[name] = {int(each.replace(",", "")) for each in re.findall(r"\d[\d,]*", much)}
    real = bounds()
    assert listed.keys() == real.keys()
    assert {name: real[name] - listed[name] for name in real if real[name] - listed[name]} == {}


def test_the_kinds_of_files_that_cannot_be_opened_are_these() -> None:
    (function,) = (
        node
        for node in ast.walk(ast.parse((SOURCES / "failures.py").read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "cannot_open"
    )
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    # What is busy has another reason.
    assert names & set(KINDS) - {"CallError", "Busy"} == CANNOT_OPEN


def test_the_client_knows_capabilities_that_there_are() -> None:
    assert set(FEATURES) < set(CAPABILITIES)


def test_every_capability_is_explained() -> None:
    cells = [row[0] for row in table("capability")]
    names = re.findall(r"`([\w.]+)`", " ".join(cells))
    # The kernel that the tests run on may lack this one.
    assert sorted(names) == sorted({*CAPABILITIES, "openat2"})


def test_the_bounds_in_the_text_are_those_of_the_server() -> None:
    """Those that no refusal names with its value."""
    text = page()
    for told in (
        f"extended header of more than {unpacking._MAX_HEADER // 1024} KiB",
        f"more than {unpacking._MAX_HEADERS // 1024} KiB of headers for one member",
        f"more than {unpacking.MAX_MEMBERS:,} members, and any below {unpacking.MAX_LEVELS} levels",
        f"more than {walks.MAX_PATH:,} characters below",
        f"or below {walks.MAX_LEVELS:,} levels",
        f"more than {finds.MAX_WAITING:,} characters of links",
        f"fails beyond {finds.MAX_WALK:,} entries, or {search.SEARCH_SECONDS} s",
        f"{search.MAX_GREP:,} characters; {search.SEARCH_SECONDS} s",
        f"{edits.MAX_EDITS:,} edits with strings of {edits.MAX_STRINGS:,} characters",
        f"at most {texts.MAX_EDITED:,} characters",
        f"diff is cut at {texts.MAX_DIFF:,} characters",
        f"more than {texts._MAX_CHANGED:,} changed ones",
        f"cut (`…`): messages at {errors.MAX_MESSAGE:,} bytes, values at {errors.MAX_VALUE}",
        f"keep more than {jobs.KEEP_BYTES // 1024**2} MiB",
        f"the first {jobs.SHOWN_BYTES // 1024} KiB of a command line",
        f"more than {leftovers.MOST} such outputs",
        f"its first {overflow.FILE_BYTES // 1024**2} MiB",
        f"at most {called.KEEP_RESULTS} of them and {called.KEEP_BYTES // 1024**2} MiB",
        f"the last {capture.KEEP_BYTES:,} bytes of output",
        f"{read.MAX_BYTES:,} bytes of text; images {read.IMAGE_MAX_BYTES:,}, PDFs 20 MiB",
        f"of more than {paths.MAX_STEPS:,} parts",
        f"removing more than {changes.MAX_LEVELS:,} directories",
        f"have at most {wire.MOST:,} fields",
        f"Messages are at most {server.MAX_MESSAGE // 1024**2} MiB",
        f"At most {server.MAX_STREAMS:,} calls run on a connection",
        f"at most {server.MAX_CONNECTIONS:,} connections",
        f"{server.MAX_RPCS:,} calls run, on all connections together",
        f"of answers of `Files.ReadText` {HEAVY['/cloister.exec.v1.Files/ReadText']} are",
        f"`Processes.List` and `Shells.List` {HEAVY['/cloister.exec.v1.Shells/List']}",
    ):
        assert told in text
    assert sorted(HEAVY.values()) == [8, 8, 8, 32]
