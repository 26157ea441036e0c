"""A crowd of orphans of one context, behind whom those of another are looked for."""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from support.sandbox_server import Tools

pytestmark = pytest.mark.long

CROWD = """
import os, signal
if os.fork(): os._exit(0)
os.setsid()
for _ in range(1500):
    if not os.fork():
        signal.pause()
open("crowd", "w").close()
"""
"""More orphans than the kernel tells of at once."""
COMET = """
import os, sys
while not os.path.exists(sys.argv[1] + ".stop"):
    if os.fork(): os._exit(0)
    os.setsid()
    open(sys.argv[1], "a").write(".")
"""
"""A process that lives for a moment and leaves another."""


@pytest.fixture
def behind(tools: Tools) -> Iterator[Tools]:
    """Tools of a server that has such a crowd."""
    tools.call("write", file_path="crowd.py", content=CROWD)
    start = "rm -f crowd; python3 crowd.py; until test -e crowd; do sleep 0.01; done"
    tools.bash(start, context_id="crowd")
    yield tools
    close(tools, "crowd")


def close(tools: Tools, context: str) -> None:
    tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id=context), timeout=40)


def test_what_goes_on_is_counted_and_kept_all_the_same(behind: Tools) -> None:
    seconds = 5_000_000 + uuid.uuid4().int % 1_000_000
    start = f"setsid -f sleep {seconds}; until pgrep -fx 'sleep {seconds}'; do :; done"
    started = behind.call("bash", context_id="hidden", command=start)
    assert started.exit.surviving_processes == 1
    late = behind.call("bash", context_id="hidden", command="sleep 600", timeout_ms=500)
    assert (late.state_lost, late.exit.surviving_processes) == (False, 1)
    close(behind, "hidden")
    assert behind.bash(f"pgrep -fx 'sleep {seconds}' || echo none") == "none"


def test_a_process_that_never_stays_is_caught_all_the_same(behind: Tools, tmp_path: Path) -> None:
    for number in range(5):
        trace = tmp_path / f"trace{number}"
        try:
            command = f"{sys.executable} -c '{COMET}' {trace}; while ! test -s {trace}; do :; done"
            behind.call("bash", context_id="comet", command=command)
            close(behind, "comet")
            reached = trace.stat().st_size
            # Looking for it would miss it, too.
            behind.bash("sleep 0.2")
            assert trace.stat().st_size == reached
        finally:
            Path(f"{trace}.stop").touch()
