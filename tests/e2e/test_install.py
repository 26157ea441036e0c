"""The chart on a real cluster: its own test, the command line, and the examples."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cluster import SANDBOXES, SYSTEM, kubectl, wait_condition, wait_gone

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = ROOT / "examples" / "03-hosts-by-name"
"""It wants an internet: test_egress.py has one."""
EXAMPLES = sorted(
    path.parent for path in ROOT.glob("examples/*/environment.yaml") if path.parent != BY_NAME
)
HELM = os.environ.get("HELM", "helm")


def run(*command: str, code: int = 0, stdin: str | None = None) -> str:
    done = subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == code, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def cloister(*args: str, code: int = 0) -> str:
    """The `cloister` command, as a user runs it."""
    return run(str(Path(sys.executable).parent / "cloister"), *args, code=code)


def test_helm_test() -> None:
    out = run(HELM, "test", "cloister", "-n", SYSTEM, "--timeout", "3m", "--logs")
    assert "Phase:          Succeeded" in out


def test_upgrade_keeps_what_runs() -> None:
    values = run(HELM, "get", "values", "cloister", "-n", SYSTEM, "-o", "yaml")
    out = run(
        *(HELM, "upgrade", "cloister", "charts/cloister", "-n", SYSTEM, "-f", "-"),
        *("--wait", "--timeout", "3m"),
        stdin=values,
    )
    assert "STATUS: deployed" in out


def test_the_command_line(environments: Callable[..., str], name: str, tmp_path: Path) -> None:
    env = environments()
    assert env in cloister("env", "list")
    cloister("session", "create", env, "--name", name)
    listed = json.loads(cloister("-o", "json", "session", "list"))
    assert name in [each["name"] for each in listed]
    assert cloister("exec", name, "--", "echo", "hello").strip() == "hello"
    cloister("exec", name, "--", "exit 7", code=7)
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a.bin").write_bytes(bytes(range(256)) * 5000)
    (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "run.sh").chmod(0o755)
    cloister("cp", str(source), f"{name}:/workspace/tree")
    assert cloister("exec", name, "--", "tree/run.sh").strip() == "ran"
    cloister("cp", f"{name}:/workspace/tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "a.bin").read_bytes() == bytes(range(256)) * 5000
    assert "exec server" in cloister("logs", name)
    cloister("session", "rm", name)
    cloister("exec", name, "--", "true", code=1)
    wait_gone("session", name)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example(example: Path) -> None:
    manifest = str(example / "environment.yaml")
    kubectl("apply", "-f", manifest, "-n", SANDBOXES)
    name = json.loads(
        kubectl("apply", "-f", manifest, "-n", SANDBOXES, "--dry-run=client", "-o", "json").out
    )["metadata"]["name"]
    try:
        wait_condition("environment", name, "Ready")
        expected = (example / "expected.txt").read_text()
        assert run(sys.executable, str(example / "main.py")) == expected
    finally:
        kubectl("delete", "-f", manifest, "-n", SANDBOXES)
        wait_gone("environment", name)
