"""Our server and the reference implementation, side by side in empty workspaces."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.reference_toolset import Both, side_by_side
from support.sandbox_server import Sandbox, Tools


@pytest.fixture
def both(claimed: Sandbox, tools: Tools, tmp_path: Path) -> Iterator[Both]:
    """The two, with nothing in their workspaces and a context that is new."""
    for each in claimed.workspace.iterdir():
        shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    extra = claimed.workspace.parent / "extra"
    shutil.rmtree(extra, ignore_errors=True)
    (extra / "uploads").mkdir(parents=True)
    other = tmp_path / "reference"
    other.mkdir()
    context = uuid.uuid4().hex
    tools.call("read", context_id=context, file_path="none")  # so that there is one to close
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
    }
    with side_by_side(tools, claimed.workspace, other, context, env) as pair:
        yield pair
