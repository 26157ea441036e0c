"""What the `cloister` command does without until it needs it: its user waits for every import."""

import os
import subprocess
import sys

import pytest

from support.fake_kube import FakeKube

_SCRIPT = """
import contextlib, sys
from cloister.cli import main

with contextlib.suppress(SystemExit):
    assert main(sys.argv[1:]) == 0
print(*sorted(sys.modules))
"""


def loaded(*arguments: str, kubeconfig: str = "") -> set[str]:
    """The modules of a process that ran this command."""
    paths = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments],
        env={"PYTHONPATH": paths, "KUBECONFIG": kubeconfig},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_needs_nothing_of_a_cluster() -> None:
    modules = loaded("session", "create", "--help")
    assert "cloister.cli.arguments" in modules
    assert modules & {"kubernetes", "aiohttp", "yaml", "pydantic", "requests"} == set()


@pytest.mark.usefixtures("sessions")
def test_a_cluster_is_talked_to_without_models(kube: FakeKube, kubeconfig: str) -> None:
    modules = loaded("session", "list", kubeconfig=kubeconfig)
    assert kube.forwarded == ["cloister-operator-0:8443"]
    assert "kubernetes.aio.client" in modules
    models = {each for each in modules if each.startswith("kubernetes.aio.client.models.")}
    assert models == set()
