"""The chart's alerts, and the tool that reads them."""

import subprocess
from typing import Any

import yaml

from support.chart import CHART, tool

ALERTS = CHART / "files" / "alerts.yaml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]


def promtool(*arguments: str) -> str:
    """Run promtool; the answer is what it prints."""
    done = subprocess.run(
        [tool("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
