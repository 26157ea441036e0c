"""Hazards of this tree's layout that no other tool reports."""

import importlib
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    origin = importlib.import_module("operator").__file__
    assert origin is not None
    assert not Path(origin).is_relative_to(ROOT)


def test_test_folders_are_not_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_locks_pin_what_the_groups_name() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for group in ("sandbox", "operator", "gateway", "client"):
        lock = (ROOT / "requirements" / f"{group}.txt").read_text()
        for requirement in groups[group]:
            assert requirement.lower() in lock, f"run `make lock`: {requirement} in {group}.txt"


def test_the_exec_server_carries_grpcio_and_protobuf_only() -> None:
    lock = (ROOT / "requirements" / "sandbox.txt").read_text()
    names = {line.split("==")[0] for line in lock.splitlines() if line and line[0].isalpha()}
    assert names == {"grpcio", "protobuf", "typing-extensions"}
