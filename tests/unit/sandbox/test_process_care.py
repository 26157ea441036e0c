"""Every process that a command started ends with it, whatever it did to get away."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from support.file_calls import eventually
from support.sandbox_server import Tools

FORKING = """
import os, sys, time
def away():
    if os.fork(): os._exit(0)
    os.setsid()
"""
"""Two forks and a session of its own: what a daemon does to leave whoever started it."""

COMET = (
    FORKING
    + """
while not os.path.exists(sys.argv[1] + ".stop"):
    away()
    open(sys.argv[1], "a").write(".")
"""
)
"""A process that lives for a moment and leaves another: no look at the table finds it alive."""

STORM = (
    FORKING
    + """
away()
for _ in range(6): os.fork()
while True: time.sleep(60)
"""
)
"""64 processes, of which no one is the others' parent for long."""


def sleeping(seconds: str) -> list[str]:
    """The pids of the processes that sleep for so long."""
    return subprocess.run(
        ["pgrep", "-fx", f"sleep {seconds}"], check=False, capture_output=True, text=True
    ).stdout.split()


ESCAPES = {
    "background": "sleep {n} &",
    "subshell": "(sleep {n} &)",
    "setsid": "setsid sleep {n} &",
    "setsid-fork": "setsid -f sleep {n}",
    "nohup": "nohup sleep {n} >/dev/null 2>&1 &",
    "disown": "sleep {n} & disown -a",
    "double-fork": "(setsid sh -c 'sleep {n} & sleep {n} &' &)",
    "no-environment": "(env -i setsid sh -c 'sleep {n} & exit' &)",
    "no-environment-fork": "env -i setsid -f env -i setsid -f sleep {n}",
    "other-mark": "CLOISTER_CONTEXT=other setsid -f sleep {n}",
    "lower-number": "(ulimit -m 1000; env -i setsid -f sleep {n})",
    "stopped": "setsid sh -c 'sleep {n} & sleep 0.2; kill -STOP $! $$' &",
    "ignoring": "(trap '' INT TERM HUP; env -i setsid -f sleep {n})",
}


@pytest.fixture
def seconds() -> str:
    """A duration that no other test sleeps for."""
    return f"{4_000_000 + uuid.uuid4().int % 1_000_000}"


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES.keys())
@pytest.mark.parametrize("end", ["timeout", "exit", "close"])
def test_nothing_outlives_its_context(tools: Tools, seconds: str, escape: str, end: str) -> None:
    command = escape.format(n=seconds)
    context = f"escape-{seconds}"
    command += f"\nuntil pgrep -fx 'sleep {seconds}' >/dev/null; do sleep 0.01; done"
    if end == "close":
        tools.call("bash", context_id=context, command=command)
        assert sleeping(seconds) != []
    elif end == "exit":
        ended = tools.call("bash", context_id=context, command=f"{command}; exit 5")
        assert ended.exit.code == 5
        assert sleeping(seconds) == []
    else:
        last = f"{command}\necho all; sleep {seconds}"
        ended = tools.call("bash", context_id=context, command=last, timeout_ms=2000)
        assert ended.content[0].text.startswith("all\nbash: bash command timed out after 2.0s")
        assert (ended.state_lost, ended.exit.surviving_processes) == (False, 0)
        assert sleeping(seconds) == []
    tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id=context), timeout=20)
    assert sleeping(seconds) == []


def test_what_earlier_commands_left_outlives_a_timeout_and_is_counted(
    tools: Tools, seconds: str
) -> None:
    keep = f"x=kept; sleep {seconds} & env -i setsid -f sh -c 'while :; do sleep {seconds}; done'"
    keep += f"; until test $(pgrep -fxc 'sleep {seconds}') = 2; do sleep 0.01; done"
    tools.call("bash", context_id="left", command=keep)
    before = sleeping(seconds)
    late = f"{seconds}.5"
    start = f"setsid -f sleep {late}; (sleep {late} &); sleep {late}"
    ended = tools.call("bash", context_id="left", command=start, timeout_ms=1500)
    assert (ended.state_lost, ended.exit.surviving_processes) == (False, 3)
    assert sleeping(late) == []
    assert sleeping(seconds) == before
    # What they start while the command runs is theirs, too.
    again = f"kill {before[0]} {before[1]}; sleep {late}"
    ended = tools.call("bash", context_id="left", command=again, timeout_ms=1500)
    assert ended.exit.surviving_processes == 2
    assert len(sleeping(seconds)) == 1
    assert tools.call("bash", context_id="left", command="echo $x").content[0].text == "kept"
    tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id="left"), timeout=20)
    assert sleeping(seconds) == []


def test_a_storm_ends_with_its_time(tools: Tools, seconds: str) -> None:
    script = STORM.replace("time.sleep(60)", f"os.execlp('sleep', 'sleep', '{seconds}')")
    ready = f"until test $(pgrep -fxc 'sleep {seconds}') = 64; do sleep 0.01; done; echo all"
    command = f'{sys.executable} -c "{script}"\n{ready}; sleep 4000'
    ended = tools.call("bash", context_id="storming", command=command, timeout_ms=3000)
    assert ended.content[0].text.startswith("all\n")
    assert (ended.state_lost, ended.exit.surviving_processes) == (False, 0)
    assert sleeping(seconds) == []


def test_what_goes_on_is_counted(tools: Tools, seconds: str) -> None:
    def going_on(command: str) -> int:
        called = tools.call("bash", context_id="counts", command=command)
        return called.exit.surviving_processes

    assert going_on("true") == 0
    start = f"sleep {seconds} & env -i setsid -f sleep {seconds}; (sleep {seconds} &)"
    assert going_on(start) == 3
    tools.call("bash", context_id="counts", command=f"pkill -fx 'sleep {seconds}'; wait")
    # Who is killed goes on for a moment, without a command line by which it could be waited for.
    eventually(lambda: going_on("true") == 0)
    tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id="counts"), timeout=20)


def test_other_contexts_keep_their_processes(tools: Tools, seconds: str) -> None:
    start = f"env -i setsid -f sleep {seconds}"
    tools.call("bash", context_id="keeps", command=start)
    tools.call("bash", context_id="ends", command=f"{start}; exit 0")
    assert len(sleeping(seconds)) == 1
    tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id="keeps"), timeout=20)
    assert sleeping(seconds) == []


def test_a_storm_ends_with_its_context(tools: Tools, seconds: str) -> None:
    script = STORM.replace("time.sleep(60)", f"os.execlp('sleep', 'sleep', '{seconds}')")
    ready = f"until test $(pgrep -fxc 'sleep {seconds}') = 64; do sleep 0.01; done"
    tools.call("bash", context_id="storm", command=f'{sys.executable} -c "{script}"\n{ready}')
    assert len(sleeping(seconds)) == 64
    tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id="storm"), timeout=20)
    assert sleeping(seconds) == []


@pytest.mark.long
def test_a_process_that_never_stays_is_caught(tools: Tools, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    try:
        command = f"{sys.executable} -c '{COMET}' {trace}; while ! test -s {trace}; do :; done"
        tools.call("bash", context_id="comet", command=command)
        tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id="comet"), timeout=20)
        assert subprocess.run(["pgrep", "-f", str(trace)], check=False).returncode == 1
    finally:
        Path(f"{trace}.stop").touch()
