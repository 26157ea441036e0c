"""Load and faults that a tenant can cause: bounded, and over when they are over."""

import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.main import TOLD_TO_END
from support.memory import peak
from support.sandbox_server import Sandbox, Tools, sandbox

pytestmark = pytest.mark.long

MIB = 1024 * 1024
LONG = 10_000_000_000 if "SOAK" in os.environ else 1_000_000_000
"""Bytes of output; ten times as many where one may take one's time."""


def failure(stream: Any) -> Any:
    """How a call failed, None when it did not."""
    try:
        list(stream)
    except grpc.RpcError as error:
        return error
    return None


def test_thousands_of_millions_of_bytes_of_output(claimed: Sandbox, tools: Tools) -> None:
    before = peak(claimed.process.pid)
    result = tools.call("bash", command=f"head -c {LONG} /dev/zero; echo END")
    assert result.truncation.total_bytes == LONG + 4
    text, left_out = result.content[0].text.rsplit("\n", 1)
    assert text.endswith("\0END")
    assert f"the first {64 * MIB} are in {result.truncation.spool_path}]" in left_out
    assert Path(result.truncation.spool_path).stat().st_size == 64 * MIB
    assert peak(claimed.process.pid) - before < 32 * MIB


def test_output_after_the_end_never_delays_the_result(claimed: Sandbox, tools: Tools) -> None:
    # The background job prints without end; a result that waited for it would never come.
    text = tools.bash("(sleep 0.1; yes) & echo result; :")
    assert text.splitlines()[0] == "result"
    assert tools.bash("kill %1; echo next") == "next"


def test_a_command_of_a_megabyte(tools: Tools) -> None:
    words = " ".join(f"w{number}" for number in range(150_000))
    assert len(words) > MIB
    assert tools.bash(f"set -- {words}; echo $#") == "150000"


def test_a_character_is_never_cut_in_two(tools: Tools) -> None:
    assert tools.bash(r"printf '\xc3'; sleep 0.05; printf '\xa4'; printf 'x\xf0\x9f'") == "äx\ufffd"


def test_thousands_of_calls_at_once_are_bounded(tmp_path: Path) -> None:
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            tools = Tools(channel)
            tools.bash("mkfifo gate")
            stub = exec_pb2_grpc.ToolsStub(channel)
            streams: list[Any] = []
            for number in range(3000):
                request = exec_pb2.CallRequest(request_id=uuid.uuid4().hex, tool="bash")
                request.input.update({"command": "cat gate" if number == 0 else "echo ran >> log"})
                streams.append(stub.Call(request, timeout=120))
            while sum(each.done() for each in streams) < 2700:
                time.sleep(0.01)  # until those that are refused are; the others wait at the gate
            (server.workspace / "gate").write_text("")
            refusals = [error for each in streams if (error := failure(each)) is not None]
            assert {error.code() for error in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            for error in refusals:
                details = dict(error.trailing_metadata())["grpc-status-details-bin"]
                assert b"google.rpc.RetryInfo" in details
            assert (server.workspace / "log").read_text() == "ran\n" * (2999 - len(refusals))
            assert len(refusals) >= 2700
            assert tools.bash("echo fine") == "fine"


def test_sigterm_lets_work_finish_and_ends_the_rest(tmp_path: Path) -> None:
    with sandbox(tmp_path) as server, ThreadPoolExecutor() as pool:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            tools = Tools(channel)
            tools.bash("mkfifo begun; setsid sleep 4730 &")
            call = pool.submit(tools.call, "bash", command="echo > begun; sleep 1; echo finished")
            (server.workspace / "begun").read_bytes()
            server.process.send_signal(signal.SIGTERM)
            assert call.result().content[0].text == "finished"
        assert server.process.wait(timeout=20) == TOLD_TO_END


def test_nothing_in_the_server_counts_by_the_wall_clock() -> None:
    sources = Path(__file__).parents[3] / "sandbox-image" / "src" / "cloister_sandbox"
    users = [
        path.name
        for path in sources.rglob("*.py")
        if "time.time(" in path.read_text() or "datetime.now(" in path.read_text()
    ]
    assert users == []
