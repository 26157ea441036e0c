"""Searches whose ripgrep a tool stops: they hold up each other, and nobody else."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister_api.exec.v1 import exec_pb2
from support.file_calls import eventually
from support.sandbox_server import Sandbox, Tools, sandbox

pytestmark = pytest.mark.long

AT_ONCE = 8
STOPS = "#!/bin/sh\n: > started.$$\nkill -STOP $$\n"


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Tools]:
    engine = tmp_path / "rg"
    engine.write_text(STOPS)
    engine.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with sandbox(tmp_path / "server", {"env": env}) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
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
