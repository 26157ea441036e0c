"""Tools that signal the server as fast as they can: they share its user."""

import signal
import sys
from pathlib import Path

import pytest

from support.sandbox_server import Sandbox, Tools

FLOOD = """
import os, signal
while True:
    for _ in range(1000):
        os.kill({server}, signal.SIGCHLD)
"""
SENDERS = 3
CALLS = 300


def test_no_thread_is_interrupted_by_the_end_of_a_child(claimed: Sandbox) -> None:
    """A handler may find it anywhere, also where Python holds a lock that the handler wants."""
    for thread in Path(f"/proc/{claimed.process.pid}/task").iterdir():
        fields = dict(line.split(":", 1) for line in (thread / "status").read_text().splitlines())
        assert int(fields["SigBlk"], 16) & 1 << (signal.SIGCHLD - 1)


@pytest.mark.long
def test_ends_of_children_told_without_end(
    claimed: Sandbox, tools: Tools, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor does the log of the pod's node fill with what there was no room for."""
    flood = FLOOD.format(server=claimed.process.pid)
    command = " ".join(f"{sys.executable} -c '{flood}' &" for _ in range(SENDERS))
    tools.bash(command, context_id="flood")
    for number in range(CALLS):
        assert tools.bash(f"sh -c 'exit 3' || echo {number} $?") == f"{number} 3"
    assert "signal" not in capfd.readouterr().err
