"""Calls: each runs once, is found again by its id, and can be stopped."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox import calls
from cloister_sandbox.calls import Calls
from cloister_sandbox.errors import Busy, IdConflict, NotFound
from cloister_sandbox.shell import Cancel
from cloister_sandbox.toolset.results import ToolResult
from support.sandbox_server import Sandbox, Tools, refused


@pytest.fixture
def stub(claimed: Sandbox) -> Iterator[exec_pb2_grpc.ToolsStub]:
    """The raw service, as the session's worker."""
    with claimed.worker() as channel:
        yield exec_pb2_grpc.ToolsStub(channel)


def bash(command: str, request_id: str = "", context_id: str = "") -> exec_pb2.CallRequest:
    request = exec_pb2.CallRequest(
        request_id=request_id or uuid.uuid4().hex, tool="bash", context_id=context_id
    )
    request.input.update({"command": command})
    return request


def test_a_repeated_id_replays_and_never_runs_again(tools: Tools) -> None:
    first = tools.call("bash", "once", command="echo x >> once.txt; wc -l < once.txt")
    again = tools.call("bash", "once", command="echo x >> once.txt; wc -l < once.txt")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.content == first.content
    assert tools.bash("cat once.txt") == "x"


@pytest.mark.parametrize(
    ("tool", "context_id", "given"),
    [
        ("bash", "", {"command": "echo two"}),
        ("read", "", {"file_path": "a"}),
        ("bash", "else", {"command": "echo one"}),
    ],
)
def test_an_id_stands_for_one_payload(
    tools: Tools, tool: str, context_id: str, given: dict[str, Any]
) -> None:
    tools.call("bash", "taken", command="echo one")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "request_id", "ID_CONFLICT"):
        tools.call(tool, "taken", context_id=context_id, **given)


def test_a_second_caller_attaches_to_a_running_call(tools: Tools) -> None:
    tools.bash("rm -f gate; mkfifo gate")
    command = "echo ran >> attach.txt; cat gate"
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(tools.call, "bash", "shared", command=command) for _ in range(2)]
        tools.call("bash", context_id="side", command="echo through > gate")
        texts = [each.result().content[0].text for each in both]
    assert texts == ["through", "through"]
    assert sorted(each.result().replayed for each in both) == [False, True]
    assert tools.bash("cat attach.txt") == "ran"


def test_losing_the_stream_does_not_stop_the_command(
    stub: exec_pb2_grpc.ToolsStub, tools: Tools
) -> None:
    tools.bash("rm -f lost; mkfifo lost started")
    request = bash("echo > started; cat lost; touch survived", "lost-stream")
    stream = stub.Call(request, timeout=60)
    tools.call("bash", context_id="side", command="cat started")
    stream.cancel()
    tools.call("bash", context_id="side", command="echo on > lost")
    kept = tools.call("bash", "lost-stream", command="echo > started; cat lost; touch survived")
    assert (kept.replayed, kept.content[0].text) == (True, "on")
    assert tools.bash("ls survived") == "survived"


def test_cancel_ends_the_command_and_keeps_its_output(
    stub: exec_pb2_grpc.ToolsStub, tools: Tools
) -> None:
    tools.bash("rm -f up; mkfifo up")
    with ThreadPoolExecutor() as pool:
        command = "echo begun; echo > up; sleep 4712 & sleep 4712"
        running = pool.submit(tools.call, "bash", "to-cancel", command=command)
        tools.call("bash", context_id="side", command="cat up")
        stub.Cancel(exec_pb2.CancelRequest(request_id="to-cancel"), timeout=10)
        result = running.result()
    assert result.is_error
    assert result.exit.reason == exec_pb2.ExitInfo.REASON_CANCELLED
    assert result.content[0].text.startswith("begun\nbash: command was cancelled")
    assert tools.bash("pgrep -fx 'sleep 4712' | wc -l") == "0"


def cancelled(stub: exec_pb2_grpc.ToolsStub, request_id: str) -> bool:
    """Cancel a call; False when the server does not know it."""
    try:
        stub.Cancel(exec_pb2.CancelRequest(request_id=request_id), timeout=10)
    except grpc.RpcError as error:
        return error.code() is not grpc.StatusCode.NOT_FOUND
    return True


def test_a_call_that_waits_in_vain_never_runs_and_ends_at_once(
    stub: exec_pb2_grpc.ToolsStub, tools: Tools
) -> None:
    tools.bash("rm -f hold held; mkfifo hold held")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(tools.call, "bash", command="echo > held; cat hold")
        tools.call("bash", context_id="side", command="cat held")
        waiting = stub.Call(bash("touch never", "queued"), timeout=60)
        while not cancelled(stub, "queued"):
            pass  # the server has not seen the call yet
        *_, last = waiting
        assert last.result.content[0].text == "bash: cancelled before it ran"
        late = tools.call("bash", budget=0.1, command="touch never")
        assert late.content[0].text == "bash: timed out behind other calls"
        assert not first.done(), "nobody waited for it"
        tools.call("bash", context_id="side", command="echo go > hold")
        first.result()
    assert tools.call("bash", command="ls never").is_error


def test_an_unknown_call_cannot_be_cancelled(stub: exec_pb2_grpc.ToolsStub) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        stub.Cancel(exec_pb2.CancelRequest(request_id="unknown"), timeout=10)


def test_contexts_have_shells_of_their_own(stub: exec_pb2_grpc.ToolsStub, tools: Tools) -> None:
    tools.call("bash", context_id="one", command="cd /usr; v=1; sleep 4714 &")
    assert tools.call("bash", context_id="two", command="echo [$v]").content[0].text == "[]"
    stub.CloseContext(exec_pb2.CloseContextRequest(context_id="one"), timeout=10)
    assert tools.bash("pgrep -fx 'sleep 4714' | wc -l") == "0"
    assert tools.call("bash", context_id="one", command="echo [$v]").content[0].text == "[]"
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        stub.CloseContext(exec_pb2.CloseContextRequest(context_id="never"), timeout=10)


def test_closing_a_context_ends_its_running_call(
    stub: exec_pb2_grpc.ToolsStub, tools: Tools
) -> None:
    tools.bash("rm -f busy; mkfifo busy")
    with ThreadPoolExecutor() as pool:
        command = "echo partial; echo > busy; sleep 4715"
        running = pool.submit(tools.call, "bash", context_id="closing", command=command)
        tools.bash("cat busy")
        stub.CloseContext(exec_pb2.CloseContextRequest(context_id="closing"), timeout=10)
        result = running.result()
    assert result.state_lost
    assert result.content[0].text.startswith("partial\n")
    assert "its context was closed" in result.content[0].text
    assert result.exit.reason == exec_pb2.ExitInfo.REASON_SHUTDOWN
    assert tools.bash("pgrep -fx 'sleep 4715' | wc -l") == "0"


def test_the_budget_bounds_the_command(tools: Tools) -> None:
    result = tools.call("bash", budget=1.5, command="echo a; sleep 4716", timeout_ms=60_000)
    assert result.exit.reason == exec_pb2.ExitInfo.REASON_TIMED_OUT
    assert result.content[0].text.startswith("a\n")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (exec_pb2.CallRequest(tool="bash"), "request_id"),
        (exec_pb2.CallRequest(tool="bash", request_id="x" * 129), "request_id"),
        (exec_pb2.CallRequest(tool="dance", request_id="x"), "tool"),
        (exec_pb2.CallRequest(tool="bash", request_id="x", context_id="x" * 129), "context_id"),
    ],
)
def test_a_wrong_request_names_the_field(
    stub: exec_pb2_grpc.ToolsStub, request_: exec_pb2.CallRequest, field: str
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: ", "google.rpc.BadRequest"):
        list(stub.Call(request_, timeout=10))


def test_many_calls_at_once_each_get_their_own_result(tools: Tools) -> None:
    barrier = threading.Barrier(16)

    def one(number: int) -> str:
        barrier.wait()
        context = f"many-{number % 4}"
        return tools.call("bash", context_id=context, command=f"echo {number}").content[0].text

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == [str(number) for number in range(16)]


async def finished(registry: Calls, request_id: str, text: str = "") -> None:
    async def work(cancel: Cancel) -> ToolResult:
        return ToolResult(text)

    call, _ = registry.start(request_id, b"", work)
    assert await call.ended(10) is not None


async def known(registry: Calls, request_id: str) -> bool:
    try:
        registry.cancel(request_id)
    except NotFound:
        return False
    return True


async def test_results_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "KEEP_RESULTS", 3)
    registry = Calls()
    for name in "abcd":
        await finished(registry, name)
    assert [await known(registry, name) for name in "abcd"] == [False, True, True, True]


async def test_results_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "KEEP_BYTES", 2000)
    registry = Calls()
    await finished(registry, "a", "x" * 900)
    await finished(registry, "b", "x" * 900)
    assert [await known(registry, name) for name in "ab"] == [False, True]


async def test_results_are_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Calls()
    await finished(registry, "old")
    assert await known(registry, "old")
    monkeypatch.setattr(calls, "KEEP_SECONDS", -1.0)
    await finished(registry, "new")
    assert not await known(registry, "old")


async def test_running_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_RUNNING", 1)
    registry = Calls()

    async def until_cancelled(cancel: Cancel) -> ToolResult:
        await cancel
        return ToolResult("stopped")

    first, _ = registry.start("first", b"", until_cancelled)
    with pytest.raises(Busy):
        registry.start("second", b"", until_cancelled)
    assert registry.start("first", b"", until_cancelled) == (first, True)
    with pytest.raises(IdConflict):
        registry.start("first", b"other", until_cancelled)
    registry.stop_all()
    await registry.settle(10)
    assert first.result == ToolResult("stopped")
