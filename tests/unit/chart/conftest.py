"""The script that writes the chart's README, which is no package."""

import importlib.util
import sys
from types import ModuleType

import pytest

from support.chart import ROOT


@pytest.fixture(scope="session")
def chart_readme() -> ModuleType:
    """scripts/chart_readme.py."""
    path = ROOT / "scripts" / "chart_readme.py"
    spec = importlib.util.spec_from_file_location("chart_readme", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules["chart_readme"] = module
    spec.loader.exec_module(module)
    return module
