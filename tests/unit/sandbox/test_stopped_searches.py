"""Searches whose ripgrep a tool stops: they hold up each other, and nobody else."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister_api.exec.v1 import exec_pb2
from support.false_ripgrep import with_ripgrep
from support.file_calls import eventually
from support.sandbox_server import Sandbox, Tools

pytestmark = pytest.mark.long

AT_ONCE = 8
STOPS = ": > started.$$\nkill -STOP $$\n"


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Tools]:
    with with_ripgrep(tmp_path, STOPS) as server, server.worker() as channel:
        made = Tools(channel)
        calls = [search(made, f"c{number}") for number in range(AT_ONCE)]
        eventually(lambda: started(server) == AT_ONCE)
        yield made
        # Whoever was held up by them has waited for their end.
        assert not any(each.done() for each in calls)
        for each in calls:
            each.cancel()


def search(tools: Tools, context_id: str) -> Any:
    """A search that is under way, or waits."""
    request = exec_pb2.CallRequest(request_id=uuid.uuid4().hex, tool="grep", context_id=context_id)
    request.input.update({"pattern": "x"})
    return tools.stub.Call(request, timeout=300)


def started(server: Sandbox) -> int:
    """How often ripgrep was started."""
    return len(list(server.workspace.glob("started.*")))


def test_files_are_read_and_written_meanwhile(tools: Tools) -> None:
    assert not tools.call("write", file_path="f", content="one\n" * 50_000).is_error
    assert not tools.call("read", file_path="f").is_error
    assert not tools.call(
        "edit", file_path="f", old_string="one", new_string="two", replace_all=True
    ).is_error
    assert not tools.call("glob", pattern="f").is_error


def test_a_search_behind_them_keeps_its_budget(tools: Tools) -> None:
    text = tools.text("grep", pattern="x", budget=0.1)
    assert text == "grep: timed out behind other searches"
