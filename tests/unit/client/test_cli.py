"""The `cloister` command: what it prints, and its exit codes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from cloister.cli import main
from cloister_api.sessions.v1 import sessions_pb2 as pb
from support.cluster import wait_for
from support.fake_kube import FakeKube
from support.fake_sessions import FakeSessions
from support.sandbox_server import Sandbox


@pytest.fixture(autouse=True)
def environment(kubeconfig: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find the fake cluster, from outside of it."""
    monkeypatch.setenv("KUBECONFIG", kubeconfig)


Out = pytest.CaptureFixture[str]


def test_environments(kube: FakeKube, capsys: Out) -> None:
    kube.environments = [
        {
            "metadata": {"name": "b", "namespace": "cloister-sandboxes"},
            "spec": {"pool": {"size": 3}},
            "status": {
                "pool": {"ready": 2},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        {
            "metadata": {"name": "a", "namespace": "cloister-sandboxes"},
            "status": {
                "conditions": [{"type": "Ready", "status": "False", "message": "no\x1b[2J image"}]
            },
        },
    ]
    assert main(["env", "list"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "READY", "WARM", "MESSAGE"]
    assert first.split() == ["a", "False", "0/1", "no?[2J", "image"]
    assert second.split() == ["b", "True", "2/3", "-"]
    assert main(["env", "list", "-o", "json"]) == 0
    assert [each["poolReady"] for each in json.loads(capsys.readouterr().out)] == [0, 2]
    kube.environments = []
    assert main(["env", "list"]) == 0
    assert capsys.readouterr() == ("", "no Environments found in namespace cloister-sandboxes\n")


@pytest.mark.parametrize("command", [["session", "list"], ["session", "rm", "mine"]])
def test_an_error_moves_no_cursor(command: list[str], sessions: FakeSessions, capsys: Out) -> None:
    hostile = "no\x1b]52;c;ZXZpbA==\x07\r\ncloister: all is well\u202e"
    sessions.failures.append((grpc.StatusCode.INTERNAL, hostile, b""))
    assert main(command) == 1
    expected = "cloister: no?]52;c;ZXZpbA==? cloister: all is well?\n"
    assert capsys.readouterr().err == expected


def test_sessions(sessions: FakeSessions, capsys: Out) -> None:
    assert main(["session", "create", "env", "--name", "mine", "--env", "A=b=c"]) == 0
    assert capsys.readouterr().out == "mine\n"
    assert dict(sessions.created[0].env) == {"A": "b=c"}
    assert main(["-o", "json", "session", "list"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["podName"], listed["phase"]) == ("mine", "sandbox-0", "Running")
    assert main(["session", "list", "env"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[0] == "NAME   ENVIRONMENT   PHASE     POD         AGE"
    )
    assert main(["session", "list", "other"]) == 0
    assert capsys.readouterr() == ("", "no sessions found in namespace cloister-sandboxes\n")
    assert main(["session", "rm", "missing", "mine"]) == 1
    assert capsys.readouterr().err == "cloister: session missing does not exist\n"
    assert sessions.sessions == {}


@pytest.mark.usefixtures("sessions")
def test_session_egress(sessions: FakeSessions, capsys: Out) -> None:
    assert main(["session", "create", "env", "--name", "mine"]) == 0
    capsys.readouterr()
    assert main(["session", "egress", "mine"]) == 0
    assert capsys.readouterr() == (
        "",
        "session mine is not known to have tried to reach anything\n",
    )
    denied = pb.EgressDecision(
        host="evil\x1b[2J.example", port=443, reason="HostNotAllowed", count=7
    )
    allowed = pb.EgressDecision(host="a.example", port=80, allowed=True, reason="Allowed", count=1)
    sessions.reached += [denied, allowed, pb.EgressDecision(port=443, reason="NotAName", count=2)]
    sessions.reached.append(pb.EgressDecision(reason="TooManyConnections", count=9))
    for each in sessions.reached:
        each.last.GetCurrentTime()
    assert main(["session", "egress", "mine"]) == 0
    header, *rows = [line.split()[:-1] for line in capsys.readouterr().out.splitlines()]
    assert header == ["HOST", "VERDICT", "REASON", "COUNT"]
    assert rows == [
        ["evil?[2J.example:443", "denied", "HostNotAllowed", "7"],
        ["a.example:80", "allowed", "Allowed", "1"],
        ["(no", "name):443", "denied", "NotAName", "2"],
        ["(any", "host)", "denied", "TooManyConnections", "9"],
    ]
    assert main(["session", "egress", "mine", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(each["host"], each["allowed"]) for each in listed][1:] == [
        ("a.example", True),
        ("", False),
        ("", False),
    ]
    assert main(["session", "egress", "nobody"]) == 1
    assert "nobody" in capsys.readouterr().err


def test_exec(capsys: Out) -> None:
    main(["session", "create", "env", "--name", "mine"])
    capsys.readouterr()
    cases = [
        (["echo", "two  spaces", "$HOME"], 0, "two  spaces $HOME\n"),
        (["echo one; echo two | tr t T"], 0, "one\nTwo\n"),
        (["true"], 0, ""),
        (["exit 7"], 7, ""),
        (["echo partly; (exit 3)"], 3, "partly\n"),
        (["kill -9 $$"], 137, ""),
    ]
    for command, code, out in cases:
        assert main(["exec", "mine", "--", *command]) == code, command
        assert capsys.readouterr().out == out, command
    main(["exec", "mine", "--", "X=1"])
    main(["exec", "mine", "--shell", "s", "--", "X=2"])
    capsys.readouterr()
    main(["exec", "mine", "--shell", "s", "--", "echo $X"])
    main(["exec", "mine", "--", "echo ${X:-unset}"])
    assert capsys.readouterr().out == "2\nunset\n"
    assert main(["exec", "other", "--", "true"]) == 1
    assert capsys.readouterr().err == "cloister: session other does not exist\n"


def test_cp(sessions: FakeSessions, capsys: Out, tmp_path: Path) -> None:
    main(["session", "create", "env", "--name", "mine"])
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a.bin").write_bytes(bytes(range(256)))
    (source / "out").symlink_to("/etc")
    capsys.readouterr()
    assert main(["cp", str(source), "mine:cp"]) == 0
    assert "left out" in capsys.readouterr().err
    assert main(["cp", "mine:cp", str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "sub" / "a.bin").read_bytes() == bytes(range(256))
    assert main(["cp", "mine:cp", "mine:other"]) == 1
    assert main(["cp", "a", "b"]) == 1
    assert capsys.readouterr().err.count("exactly one of SRC and DST") == 2
    assert main(["cp", "mine:missing", str(tmp_path)]) == 1
    assert list(sessions.sessions) == ["mine"]


@pytest.mark.usefixtures("sessions")
def test_logs(kube: FakeKube, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    kube.log = b"exec server ready\n\xff\n"
    main(["session", "create", "env", "--name", "mine"])
    capfdbinary.readouterr()
    assert main(["logs", "mine", "--tail", "2"]) == 0
    assert capfdbinary.readouterr().out == b"exec server ready\n\xff\n"
    del kube.forwards["sandbox-0"]
    assert main(["logs", "mine"]) == 1
    assert (
        b"cannot read the log of pod cloister-sandboxes/sandbox-0" in capfdbinary.readouterr().err
    )


def test_failures_are_one_sentence(
    kube: FakeKube, sessions: FakeSessions, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["-n", "other", "env", "list"]) == 1
    assert capsys.readouterr().err == (
        "cloister: cannot list environments in other: environments.cloister.dev is forbidden\n"
    )
    sessions.failures = [(grpc.StatusCode.NOT_FOUND, "environment x does not exist", b"")]
    assert main(["session", "create", "x"]) == 1
    assert capsys.readouterr().err == "cloister: environment x does not exist\n"
    assert main(["-n", "other", "session", "list"]) == 1
    assert capsys.readouterr().err == (
        "cloister: namespace other does not exist or is not set up for sandboxes: there is no "
        "service account other/cloister-worker\n"
    )
    kube.client_config = None
    assert main(["session", "list"]) == 1
    assert capsys.readouterr().err == (
        "cloister: Cloister is not installed in namespace cloister-system: there is no ConfigMap "
        "cloister-client-config\n"
    )
    kube.page = "<html>please log in</html>"
    assert main(["env", "list"]) == 1
    assert capsys.readouterr().err == (
        "cloister: cannot list environments in cloister-sandboxes: the answer is none of a "
        "Kubernetes API\n"
    )
    kube.page = ""
    kube.environments = None
    assert main(["env", "list"]) == 1
    assert capsys.readouterr().err == (
        "cloister: Cloister is not installed in this cluster: it knows no cloister.dev/v1alpha1\n"
    )


def test_a_wrong_configuration_is_one_sentence(
    kubeconfig: str, capsys: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing"
    assert main(["env", "list", "--kubeconfig", str(missing)]) == 1
    assert capsys.readouterr().err == (
        f"cloister: no usable Kubernetes configuration: there is no file {missing}; name one with "
        "$KUBECONFIG\n"
    )
    assert main(["env", "list", "--context", "nowhere"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("cloister: no usable Kubernetes configuration: ")
    assert "nowhere" in sentence
    dead = Path(kubeconfig).read_text().replace("127.0.0.1", "127.0.0.2")
    missing.write_text(dead)
    assert main(["env", "list", "--kubeconfig", str(missing)]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "the Kubernetes API at 127.0.0.2:" in sentence
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/nothing:{kubeconfig}")
    assert main(["env", "list", "-o", "json"]) == 0
    assert capsys.readouterr() == ("[]\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["session"],
        ["exec", "mine"],
        ["session", "create", "env", "--env", "novalue"],
        ["session", "create", "env", "--wait", "2h"],
        ["session", "create", "env", "--idle-timeout", "0s"],
        ["logs", "mine", "--tail", "-1"],
        ["-o", "yaml", "env", "list"],
    ],
)
def test_usage(arguments: list[str], capsys: Out) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: cloister")


def test_as_a_module() -> None:
    path = ":".join(each for each in sys.path if each)
    command = [sys.executable, "-m", "cloister", "--help"]
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, check=True)
    assert b"Sandboxes for AI agents" in done.stdout


def test_an_interrupt_stops_the_command(
    server: Sandbox, kubeconfig: str, sessions: FakeSessions
) -> None:
    main(["session", "create", "env", "--name", "mine"])
    path = ":".join(each for each in sys.path if each)
    pid_file = server.workspace / "interrupted"
    line = f"sleep 600 & echo $! > {pid_file}; wait"
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", "exec", "mine", "--", line],
        env={"PYTHONPATH": path, "KUBECONFIG": kubeconfig},
    )

    def written() -> str | None:
        return (pid_file.read_text().strip() if pid_file.exists() else "") or None

    pid = wait_for("the command runs", written, 20)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    wait_for("its end", lambda: None if Path(f"/proc/{pid}").exists() else True, 10)
    assert list(sessions.sessions) == ["mine"]
