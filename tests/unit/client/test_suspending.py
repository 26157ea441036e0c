"""Sessions that are suspended and resumed, and sessions that got another sandbox meanwhile."""

import json

import pytest

import cloister
from cloister.cli import main
from cloister_api.sessions.v1 import sessions_pb2 as pb
from support.fake_sessions import FakeSessions


def test_a_session_is_suspended_and_resumed(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    with client.create_session("env", name="mine") as session:
        session.write("notes.txt", "kept")
        info = client.suspend_session("mine")
        assert (info.phase, info.suspended, info.ended) == ("Suspended", True, False)
        assert (info.pod_name, info.endpoint) == ("", "")
        with pytest.raises(cloister.FailedPreconditionError, match="resume it"):
            client.get_session("mine")
        with client.resume_session("mine", wait=5) as again:
            assert again.info.restarts == 1
            assert "kept" in again.read("notes.txt").text
        assert sessions.resumed[0].wait.seconds == 5
    assert "mine" not in sessions.sessions


def test_leaving_a_resumed_session_does_not_end_it(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    client.create_session("env", name="mine").close(delete=False)
    with client.resume_session("mine"):
        pass
    assert sessions.sessions["mine"].phase == pb.Session.PHASE_RUNNING


def test_calls_of_a_suspended_session_say_that_it_is(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    sessions.endpoint, real = "127.0.0.1:1", sessions.endpoint
    with client.create_session("env", name="mine") as session:
        client.suspend_session("mine")
        with pytest.raises(cloister.FailedPreconditionError, match="mine is suspended"):
            session.bash("true")
        sessions.endpoint = real
        client.resume_session("mine").close()
        # The same object goes on, in the new sandbox.
        assert session.bash("echo again").text.strip() == "again"
        assert session.info.restarts == 1


def test_the_command_line_suspends_and_resumes(
    kubeconfig: str,
    sessions: FakeSessions,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    assert main(["session", "create", "env", "--name", "mine"]) == 0
    assert main(["session", "suspend", "mine", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out.removeprefix("mine\n"))["phase"] == "Suspended"
    assert main(["session", "resume", "mine", "--wait", "2m"]) == 0
    assert capsys.readouterr().out == "mine\n"
    assert sessions.resumed[0].wait.seconds == 120
    assert main(["session", "suspend", "other"]) == 1
    assert "session other does not exist" in capsys.readouterr().err
