"""Renders the chart with helm, as a cluster would get it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "cloister"
ALL_VALUES = CHART / "ci" / "all-values.yaml"
JSON = dict[str, Any]
# What a cluster would say of itself; helm's own default is the version it was built with.
CLUSTER = ("--kube-version", "1.36.0", "--api-versions", "monitoring.coreos.com/v1")


class ChartRefusedError(Exception):
    """helm refused the values; the message is helm's."""


@dataclass(frozen=True)
class Rendered:
    """The objects of a rendering."""

    objects: tuple[JSON, ...]

    def of(self, kind: str) -> list[JSON]:
        """Objects of a kind."""
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str, namespace: str | None = None) -> JSON:
        """The object with this kind and name; AssertionError unless there is exactly one."""
        found = [
            each
            for each in self.of(kind)
            if each["metadata"]["name"] == name
            and namespace in (None, each["metadata"].get("namespace"))
        ]
        assert len(found) == 1, f"{kind} {name}: {len(found)}"
        return found[0]


@cache
def tool(name: str) -> str:
    """A program: named by its variable, on the PATH, or the bundled cluster's."""
    named = os.environ.get(name.upper()) or shutil.which(name)
    if named:
        return named
    found = subprocess.run(
        [sys.executable, "-m", "cloister_devcluster", "bin", name],
        env={**os.environ, "PYTHONPATH": str(ROOT / "devcluster" / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


@cache
def helm(*args: str) -> str:
    """Run helm; returns what it prints, raises ChartRefusedError with its complaint."""
    done = subprocess.run([tool("helm"), *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChartRefusedError(done.stderr + done.stdout)
    return done.stdout


def render(*options: str) -> Rendered:
    """`helm template` with these options; raises ChartRefusedError."""
    text = helm("template", "cloister", str(CHART), "-n", "cloister-system", *CLUSTER, *options)
    # libyaml: the CRDs are long, and the pure Python loader takes a second for them.
    return Rendered(tuple(each for each in yaml.load_all(text, yaml.CSafeLoader) if each))


def crd_schema(plural: str) -> JSON:
    """The schema of one of our kinds."""
    crd = render().one("CustomResourceDefinition", f"{plural}.cloister.dev")
    schema: JSON = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema
