"""Apply, Ready, claim, tool calls, end: what a newcomer does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cloister
from support.cluster import SANDBOXES, condition, get, kubectl, listing, wait_for, wait_phase


@pytest.fixture(scope="module")
def session(
    client: cloister.Client, environments: Callable[..., str]
) -> Iterator["cloister.Session"]:
    with client.create_session(environments()) as made:
        yield made


def test_environment_reports_its_pool(environments: Callable[..., str]) -> None:
    name = environments(pool={"size": 2})

    def both_warm() -> dict[str, object] | None:
        found = get("environment", name)
        assert found is not None
        return found if found["status"]["pool"]["ready"] == 2 else None

    found = wait_for("two warm pods", both_warm)
    assert condition(found, "NetworkEnforced")["status"] == "True"
    assert condition(found, "PoolReady")["status"] == "True"
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]  # type: ignore[index]
    assert len(listing("pods", f"cloister.dev/environment={name},cloister.dev/state=warm")) == 2
    row = kubectl("get", "environment", name, "-n", SANDBOXES).out.splitlines()
    assert row[0].split()[:2] == ["NAME", "READY"]
    assert row[1].split()[:2] == [name, "True"]


def test_a_command_runs(session: "cloister.Session") -> None:
    result = session.bash("python3 -c 'print(6*7)'")
    assert (result.text, result.is_error, result.exit_code) == ("42", False, 0)


def test_the_shell_keeps_its_state(session: "cloister.Session") -> None:
    session.bash("cd /tmp && export ANSWER=42 && f() { echo f:$ANSWER; }")
    assert session.bash("pwd; f").text == "/tmp\nf:42"
    session.bash("cd /workspace")


def test_file_tools(session: "cloister.Session") -> None:
    session.write("report/a.txt", "one\ntwo\nthree\n")
    assert session.read("report/a.txt", view_range=(2, 2)).text == "two"
    session.edit("report/a.txt", "two", "2")
    assert session.bash("cat report/a.txt").text == "one\n2\nthree"
    assert session.glob("**/*.txt").text == "/workspace/report/a.txt"
    assert session.grep("^th", "report").text == "/workspace/report/a.txt:3:three\n"
    missing = session.read("report/b.txt")
    assert (missing.is_error, missing.text) == (
        True,
        "read: report/b.txt: no such file or directory",
    )


def test_a_timed_out_command_keeps_what_it_printed(session: "cloister.Session") -> None:
    result = session.bash("echo before; sleep 600; echo after", timeout_ms=700)
    assert result.is_error
    assert "before" in result.text
    assert "after" not in result.text.splitlines()
    assert session.bash("pgrep -x sleep || echo none").text == "none"


def test_outputs_are_fetched(session: "cloister.Session", tmp_path: Path) -> None:
    session.bash("mkdir /mnt/session/outputs/a && echo done > /mnt/session/outputs/a/report.txt")
    session.download("/mnt/session/outputs", tmp_path / "outputs")
    assert (tmp_path / "outputs" / "a" / "report.txt").read_text() == "done\n"


def test_a_tool_cannot_end_the_exec_server(session: "cloister.Session") -> None:
    for signal in ("TERM", "INT", "KILL", "STOP"):
        session.bash(f"kill -{signal} 1")
    assert session.bash("echo alive").text == "alive"


def test_session_is_visible_to_kubectl(session: "cloister.Session") -> None:
    # The caller may know before the status says it.
    found = wait_phase(session.name, "Running")
    status = found["status"]
    assert status["podName"] == session.pod_name
    pod = get("pod", session.pod_name)
    assert pod is not None
    assert pod["metadata"]["labels"]["cloister.dev/state"] == "claimed"
    assert [owner["uid"] for owner in pod["metadata"]["ownerReferences"]] == [
        found["metadata"]["uid"]
    ]
    header, row = kubectl("get", "session", session.name, "-n", SANDBOXES).out.splitlines()
    assert header.split()[:3] == ["NAME", "ENVIRONMENT", "PHASE"]
    assert row.split()[2] == "Running"


def test_the_pool_is_refilled(client: cloister.Client, environments: Callable[..., str]) -> None:
    name = environments()
    with client.create_session(name) as first:

        def another() -> str | None:
            warm = listing("pods", f"cloister.dev/environment={name},cloister.dev/state=warm")
            names = [pod["metadata"]["name"] for pod in warm]
            return names[0] if names and names[0] != first.pod_name else None

        assert wait_for("another warm pod", another)
