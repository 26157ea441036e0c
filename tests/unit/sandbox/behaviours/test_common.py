"""Behaviours 1 to 9: results, inputs, and calls as such."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import contexts
from cloister_sandbox.config import Config
from cloister_sandbox.contexts import Contexts
from cloister_sandbox.processes import Reaper
from cloister_sandbox.state import ServerState
from support import reference_toolset as reference
from support.file_calls import eventually
from support.reference_toolset import Answer, Both


def test_row_01_nothing_reads_no_output(both: Both) -> None:
    both.write("empty", b"")
    both.says("(no output)", "read", file_path="empty")
    both.says("(no output)", "bash", command=":")


def test_row_02_a_failure_is_its_own_words(both: Both) -> None:
    long = "x" * 5000
    both.fails(f"read: path '../{long}': file name too long", "read", file_path=f"../{long}")
    # Nothing but an exit code: theirs has no words then, ours says the code.
    assert both.theirs("bash", command="false") == Answer("(no output)", True)
    assert both.ours("bash", command="false") == Answer("[exit code 1]", True)


def failing(error: Exception) -> Any:
    async def dance() -> str:
        """Fail."""
        raise error

    return reference.part("_beta_functions").beta_async_tool(dance)


def test_row_03_what_nobody_foresaw_is_a_sentence(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = RuntimeError("a secret of the server")
    assert "RuntimeError" in both.reference.run(failing(secret), {}).text
    assert both.reference.run(
        failing(reference.part("_beta_functions").ToolError("words")), {}
    ) == Answer("words", True)

    def broken(*_: object) -> None:
        raise secret

    monkeypatch.setattr(contexts, "read", broken)
    result = asyncio.run(run_read(tmp_path))
    assert result.is_error
    assert result.text == "read: the tool failed in a way that was not foreseen; try another way"


async def run_read(directory: Path) -> Any:
    environ = {"CLOISTER_POD_UID": "u", "CLOISTER_WORKSPACE": str(directory)}
    config = Config.from_environment(environ)
    found = Contexts(config, ServerState(), Reaper())
    cancel = asyncio.get_running_loop().create_future()
    return await found.run(found.get(""), "read", {"file_path": "f"}, 0, cancel)


@pytest.mark.parametrize(
    ("tool", "given", "text"),
    [
        ("read", {}, "read: argument file_path is missing"),
        ("read", {"file_path": 1}, "read: argument file_path must be a string, not a number"),
        ("write", {"file_path": [], "content": ""}, "write: argument file_path must be a string"),
        ("bash", {"command": {}}, "bash: argument command must be a string, not an object"),
        ("edit", {"file_path": "f", "old_string": "a"}, "edit: argument new_string is missing"),
        (
            "glob",
            {"pattern": "*", "root": "/"},
            "glob: unknown argument root; it takes path, pattern",
        ),
        ("bash", {"command": ":", "timeout_ms": "x"}, "bash: argument timeout_ms must be a whole"),
    ],
)
def test_row_04_a_wrong_argument_is_named(
    both: Both, tool: str, given: dict[str, Any], text: str
) -> None:
    theirs = both.theirs(tool, **given)
    assert theirs == Answer(f"ValueError('Invalid arguments for function {tool}')", True)
    ours = both.ours(tool, **given)
    assert (ours.text.startswith(text), ours.is_error) == (True, True)


def test_row_05_numbers_may_be_text_but_not_fractions(both: Both) -> None:
    both.write("f", b"1\n2\n3\n")
    for number in ("2", " 2 ", 2.0, "2.0", 2):
        both.says("2", "read", file_path="f", view_range=[number, number])
    for wrong in (1.5, "1.5", "two", float("nan"), float("inf"), None):
        assert both.theirs("read", file_path="f", view_range=[wrong, 2]).is_error
        ours = both.ours("read", file_path="f", view_range=[wrong, 2])
        assert ours.text.startswith("read: argument view_range must be a whole number")
    for yes in (True, "true", "yes", "on", "1", 1, "T"):
        both.says("bash session restarted", "bash", restart=yes)
    for no in (False, "false", "no", "off", "0", 0, "N"):
        both.says("ran", "bash", command="echo ran", restart=no)
    assert both.theirs("bash", restart="maybe").is_error
    assert both.ours("bash", restart="maybe").is_error


def test_row_06_what_is_no_character_is_replaced(both: Both) -> None:
    both.says("a\ufffd\ufffd\ufffdb", "bash", command=r"printf 'a\xed\xa0\x80b'")


def test_row_07_a_call_has_a_budget_of_its_own(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    # Theirs is a constant, and what was printed and the shell are lost; ours is in the request.
    monkeypatch.setattr(reference.part("_beta_session_runner"), "TOOL_TIMEOUT", 1.5)
    command = "echo begun; sleep 60"
    theirs = both.theirs("bash", command=command)
    assert theirs == Answer("tool 'bash' timed out", True)
    result = both.tools.call("bash", context_id=both.context, budget=1.5, command=command)
    assert result.exit.reason == exec_pb2.ExitInfo.REASON_TIMED_OUT
    assert result.content[0].text.startswith("begun\nbash: bash command timed out after 1.")


def test_row_08_calls_of_a_context_run_one_at_a_time(both: Both) -> None:
    together = threading.Barrier(8)
    command = "echo in >> log; sleep 0.01; echo out >> log"

    def one(_: int) -> None:
        together.wait()
        both.ours("bash", command=command)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    both.reference.dispatch([command] * 8)
    ours, theirs = both.root / "log", both.reference.root / "log"
    assert ours.read_text() == theirs.read_text() == "in\nout\n" * 8


def test_row_08_calls_go_on_when_the_caller_is_lost(both: Both) -> None:
    command = "touch begun; until test -e go; do sleep 0.01; done; echo ended > log"
    root = both.reference.root
    both.reference.dispatch_and_leave(
        command, lambda: eventually((root / "begun").exists), (root / "go").touch
    )
    request = exec_pb2.CallRequest(request_id="row-8", tool="bash", context_id=both.context)
    request.input.update({"command": command})
    call = both.tools.stub.Call(request)
    eventually((both.root / "begun").exists)
    call.cancel()
    (both.root / "go").touch()
    # The next call of the context has its turn when the lost one is done.
    both.ours("bash", command="true")
    assert (both.root / "log").read_text() == (root / "log").read_text() == "ended\n"


def test_row_09_a_call_that_is_asked_again_does_not_run_again(both: Both) -> None:
    event: Any = SimpleNamespace(name="bash", id="same", type="agent.tool_use")
    assert event.id == "same"  # the reference's tools are never told it
    for _ in range(2):
        both.theirs("bash", command="echo ran >> log")
        both.tools.call("bash", "row-9", context_id=both.context, command="echo ran >> log")
    assert (both.reference.root / "log").read_text() == "ran\nran\n"
    assert (both.root / "log").read_text() == "ran\n"
