"""What the documentation says exists: links, manifests, programs, commands, tests, code."""

import ast
import copy
import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml

import cloister
from support.chart import crd_schema

ROOT = Path(__file__).resolve().parents[2]
JSON = dict[str, Any]
GENERATED = {"build", "dist"}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_MAKE = re.compile(r"\bmake ([a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)*)")
_TEST = re.compile(r"\btest_\w+(?:\.py)?")
_TARGET = re.compile(r"^([a-z0-9-]+):", re.MULTILINE)

# What the variables of the programs in the documentation stand for.
KNOWN: dict[str, type] = {
    "again": cloister.Session,
    "client": cloister.Client,
    "command": cloister.Command,
    "ended": cloister.Exit,
    "failed": cloister.ToolResult,
    "process": cloister.Process,
    "result": cloister.ToolResult,
    "session": cloister.Session,
    "shell": cloister.Shell,
}


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    language: str
    text: str


@functools.cache
def pages() -> tuple[Path, ...]:
    """Every page of the documentation."""
    tops = [each for each in ROOT.iterdir() if not each.name.startswith(".")]
    found = [each for each in tops if each.suffix == ".md"]
    for top in tops:
        if top.is_dir() and top.name not in GENERATED:
            found += top.rglob("*.md")
    return tuple(sorted(found))


@functools.cache
def blocks() -> tuple[Block, ...]:
    """Every fenced block, without the indentation of a list that it may stand in."""
    return tuple(
        Block(page, match[2], re.sub(f"(?m)^{match[1]}", "", match[3]))
        for page in pages()
        for match in _FENCE.finditer(page.read_text())
    )


def of_language(language: str) -> list[Any]:
    """The blocks of one language, as parameters with readable names."""
    found = [each for each in blocks() if each.language == language]
    return [
        pytest.param(each, id=f"{each.page.relative_to(ROOT)}-{index}")
        for index, each in enumerate(found)
    ]


def page_ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


@functools.cache
def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Git hosts make them."""
    titles = (re.sub(r"[`*]", "", each) for each in _HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in titles}


@functools.cache
def functions_of_tests() -> dict[str, set[str]]:
    """The test functions by the path of their file."""
    return {
        str(path.relative_to(ROOT)): set(re.findall(r"def (test_\w+)", path.read_text()))
        for path in (ROOT / "tests").rglob("test_*.py")
    }


def closed(schema: JSON) -> JSON:
    """The schema with unknown fields refused, as strict clients refuse them."""
    made = copy.deepcopy(schema)

    def close(node: JSON) -> None:
        if "properties" in node:
            node.setdefault("additionalProperties", False)
        for name, each in node.get("properties", {}).items():
            if name != "metadata":
                close(each)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                close(node[key])

    close(made)
    return made


@functools.cache
def validator(kind: str) -> Any:
    """A validator of manifests of one of our kinds."""
    return jsonschema.Draft202012Validator(closed(crd_schema(f"{kind.lower()}s")))


def ours(text: str) -> Iterator[JSON]:
    """The manifests of our kinds in a YAML text."""
    for each in yaml.safe_load_all(text):
        if isinstance(each, dict) and str(each.get("apiVersion", "")).startswith("cloister.dev/"):
            yield each


@pytest.mark.parametrize("page", pages(), ids=page_ids)
def test_links_resolve(page: Path) -> None:
    for _, target in _LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_relative_to(ROOT), target
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("block", of_language("yaml"))
def test_manifests_are_valid(block: Block) -> None:
    for manifest in ours(block.text):
        problems = [
            f"{error.json_path}: {error.message}"
            for error in validator(manifest["kind"]).iter_errors(manifest)
        ]
        assert problems == []


def test_manifests_are_found_and_wrong_ones_noticed() -> None:
    found = [each for block in blocks() if block.language == "yaml" for each in ours(block.text)]
    assert {each["kind"] for each in found} == {"Environment", "Session"}
    assert not validator("Environment").is_valid({"spec": {"pool": {"sise": 1}}})
    assert not validator("Session").is_valid({"spec": {}})


@pytest.mark.parametrize("block", of_language("python"))
def test_programs_use_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(tree, str(block.page), "exec")
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            check_attribute(node.value.id, node.attr)
    for node in nodes:
        if isinstance(node, ast.Call):
            check_keywords(node)


def check_attribute(name: str, attribute: str) -> None:
    if name == "cloister":
        assert attribute in cloister.__all__, f"cloister.{attribute}"
    kind = KNOWN.get(name)
    if kind is not None:
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        known = {each.name for each in fields} | set(dir(kind))
        assert attribute in known, f"{name}.{attribute}"


def check_keywords(call: ast.Call) -> None:
    """Every argument given by name must be one of the function's."""
    if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, ast.Name):
        return
    owner = {"cloister": cloister, **KNOWN}.get(call.func.value.id)
    if owner is not None:
        taken = inspect.signature(getattr(owner, call.func.attr)).parameters
        given = {each.arg for each in call.keywords if each.arg}
        assert given <= set(taken), ast.unparse(call)


def test_programs_are_found_and_wrong_ones_noticed() -> None:
    assert len(of_language("python")) >= 5
    page = ROOT / "README.md"
    for wrong in ("cloister.sesion('x')", "session.bsh('x')", "session.bash('x', timeout=1)"):
        with pytest.raises(AssertionError):
            test_programs_use_what_exists(Block(page, "python", wrong))


@pytest.mark.parametrize("page", pages(), ids=page_ids)
def test_commands_of_make_exist(page: Path) -> None:
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text()))
    code = _CODE.findall(prose(page)) + [each.text for each in blocks() if each.page == page]
    named = {word for text in code for each in _MAKE.findall(text) for word in each.split()}
    assert named <= targets


@pytest.mark.parametrize("page", pages(), ids=page_ids)
def test_tests_that_are_named_exist(page: Path) -> None:
    files = {Path(each).name for each in functions_of_tests()}
    functions = set().union(*functions_of_tests().values())
    for name in _TEST.findall(page.read_text()):
        assert name in (files if name.endswith(".py") else functions), name


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "docs/security.md"])
def test_every_claim_is_linked_to_the_test_that_proves_it(name: str) -> None:
    page = ROOT / name
    links = [each for each in _LINK.findall(prose(page)) if each[0].startswith("`test_")]
    assert len(links) >= 15
    for text, target in links:
        path = str((page.parent / target).resolve().relative_to(ROOT))
        assert text.strip("`") in functions_of_tests()[path], f"{text} in {path}"


def test_every_attack_of_the_threat_model_names_what_stops_it_and_its_test() -> None:
    text = prose(ROOT / "SECURITY.md")
    lines = [each for each in text.splitlines() if each.startswith("| ")]
    attacks = [each for each in lines if not each.startswith(("| attack |", "|---"))]
    assert len(attacks) >= 25
    for each in attacks:
        attack, stopped_by, proof = (cell.strip() for cell in each.strip("| ").split(" | "))
        assert attack
        assert stopped_by
        assert [link for link in _LINK.findall(proof) if link[0].startswith("`test_")], attack


OPERATOR = ROOT / "operator" / "src" / "cloister_operator"
MUTANTS = ROOT / "tests" / "simulation" / "mutants.py"


@functools.cache
def parts_of_the_operator() -> tuple[frozenset[str], frozenset[str]]:
    """Its classes, and its functions, constants and members as pages name them."""
    classes, found = set(), set()
    for path in OPERATOR.rglob("*.py"):
        folder = path.relative_to(OPERATOR).with_suffix("").as_posix()
        for node in ast.parse(path.read_text()).body:
            for name in defined(node):
                found |= {f"{folder}.{name}", f"{path.stem}.{name}"}
            if isinstance(node, ast.ClassDef):
                classes.add(node.name)
                members = {f"{node.name}.{name}" for each in node.body for name in defined(each)}
                found |= members | {f"{path.stem}.{each}" for each in members}
    return frozenset(classes), frozenset(found)


def defined(node: ast.stmt) -> Iterator[str]:
    """What a statement gives a name to."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    yield from (each.id for each in targets if isinstance(each, ast.Name))


def test_code_that_the_architecture_names_is_there() -> None:
    page = prose(ROOT / "docs" / "architecture.md")
    classes, found = parts_of_the_operator()
    named = [each for each in _CODE.findall(page) if not each.startswith("test")]
    files = {each for each in named if re.fullmatch(r"[\w/]+\.py", each)}
    parts = {each for each in named if re.fullmatch(r"\w+/\w+\.\w+", each)} - files
    parts |= {each for each in named if each.partition(".")[0] in classes and "." in each}
    assert len(files) > 10
    assert len(parts) > 10
    assert [each for each in sorted(files) if not (OPERATOR / each).exists()] == []
    assert sorted(parts - found) == []
    rules = "\n".join(each for each in page.splitlines() if each.startswith("| "))
    words = {each for each in _CODE.findall(rules) if re.fullmatch(r"[a-z]+(?:_[a-z]+)+", each)}
    known = {name for each in ast.parse(MUTANTS.read_text()).body for name in defined(each)}
    assert sorted(each for each in words - known if not each.startswith("test_")) == []
