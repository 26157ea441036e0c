"""The wall clock of a running server jumps, by a day either way, while calls run."""

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from support.file_calls import eventually
from support.jobs import Jobs
from support.sandbox_server import Sandbox, Tools, sandbox

pytestmark = pytest.mark.long

DAY = 86_400
# Python runs it before anything else: whoever takes the time gets it with the offset in a file.
PATCH = """
import os, time
real = time.time
def offset():
    with open(os.environ["WALL_CLOCK"]) as file:
        return int(file.read())
time.time = lambda: real() + offset()
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.fixture
def offset(tmp_path: Path) -> Path:
    """The file that says by how many seconds the server's wall clock is wrong."""
    path = tmp_path / "offset"
    path.write_text("0")
    return path


@pytest.fixture
def server(tmp_path: Path, offset: Path) -> Iterator[Sandbox]:
    patch = tmp_path / "patch" / "sitecustomize.py"
    patch.parent.mkdir()
    patch.write_text(PATCH)
    variables = {
        "PYTHONPATH": os.pathsep.join([str(patch.parent), *sys.path]),
        "WALL_CLOCK": str(offset),
    }
    with sandbox(tmp_path / "server", env=variables) as started:
        started.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        started.claim()
        yield started


@pytest.fixture
def jump(offset: Path) -> Callable[[int], None]:
    """Sets the server's wall clock so many seconds off, at once."""

    def set_off(seconds: int) -> None:
        made = offset.with_suffix(".new")
        made.write_text(str(seconds))
        made.replace(offset)

    return set_off


@pytest.mark.parametrize("seconds", [DAY, -DAY])
def test_nothing_ends_early_or_never_and_nothing_is_forgotten(
    server: Sandbox, jump: Callable[[int], None], seconds: int
) -> None:
    long = "touch begun; until test -e go; do sleep 0.01; done; echo done"
    kept: dict[str, Any] = {
        "request_id": uuid.uuid4().hex,
        "command": "echo ran >> log; wc -l < log",
    }
    with server.worker() as channel, ThreadPoolExecutor() as pool:
        tools, jobs, runtime = Tools(channel), Jobs(channel), exec_pb2_grpc.RuntimeStub(channel)
        assert tools.call("bash", **kept).content[0].text == "1"
        going = pool.submit(tools.call, "bash", context_id="a", command=long, timeout_ms=300_000)
        ending = pool.submit(
            tools.call, "bash", context_id="b", command="sleep 50", timeout_ms=3000
        )
        program = jobs.start("sleep", "50", timeout=3)
        eventually((server.workspace / "begun").exists)
        jump(seconds)
        # That it has jumped is seen where the server shows the time.
        jobs.program("true", process_id="after")
        shown = jobs.listed()["after"].started_at.seconds
        assert abs(shown - time.time() - seconds) < DAY / 2
        # What has a bound comes to its end by it, and what has a long one does not.
        assert ending.result().exit.reason == exec_pb2.ExitInfo.REASON_TIMED_OUT
        *_, last = program
        assert last.exited.reason == exec_pb2.ExitInfo.REASON_TIMED_OUT
        assert not going.done()
        (server.workspace / "go").touch()
        assert going.result().content[0].text == "done"
        again = tools.call("bash", **kept)
        assert (again.content[0].text, again.replayed) == ("1", True)
        activity = runtime.Activity(exec_pb2.ActivityRequest(), timeout=30)
        assert 0 <= activity.idle_for.seconds < DAY / 2
        assert 0 <= activity.active.seconds < DAY / 2
