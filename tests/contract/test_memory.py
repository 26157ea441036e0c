"""The operator's memory limit has room for whatever may be in its container at once."""

from pathlib import Path

import yaml

from cloister_operator.sources import child, fetcher

VALUES = Path(__file__).resolve().parents[2] / "charts" / "cloister" / "values.yaml"
WITH_10000_PODS = 300 * 1024 * 1024
"""Bytes that the operator itself may take, as docs/performance.md has it."""


def test_fetches_from_git_fit_beside_the_operator() -> None:
    limit = yaml.safe_load(VALUES.read_text())["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    needed = WITH_10000_PODS + fetcher.AT_ONCE * child.MEMORY
    assert int(limit.removesuffix("Mi")) * 1024 * 1024 >= needed
