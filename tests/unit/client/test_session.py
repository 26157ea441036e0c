"""Sessions: made, used, left; and what is sent on the way."""

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

import cloister
from cloister import _connection, _sync_loop
from cloister_api.sessions.v1 import sessions_pb2 as pb
from support.cluster import wait_for
from support.fake_kube import TOKEN, FakeKube
from support.fake_sessions import FakeSessions
from support.sandbox_server import SESSION_UID, Sandbox


def test_tools(client: cloister.Client, server: Sandbox) -> None:
    with client.create_session("env") as session:
        result = session.bash("python3 -c 'print(6*7)'")
        assert (result.text, result.is_error, result.exit_code) == ("42", False, 0)
        assert not result.truncated
        session.write("a/b.txt", "one\ntwo\n")
        assert session.read("a/b.txt", view_range=(2, 2)).text == "two"
        assert not session.edit("a/b.txt", "two", "2").is_error
        assert session.glob("**/b.txt").text == str(server.workspace / "a" / "b.txt")
        assert session.grep("^2", "a").text.endswith("b.txt:2:2\n")
        assert session.read("missing").is_error


def test_how_a_command_ended(client: cloister.Client) -> None:
    with client.create_session("env") as session:
        assert session.bash("(exit 3)").exit_code == 3
        killed = session.bash("kill -9 $$")
        assert (killed.exit_code, killed.state_lost) == (137, True)
        slow = session.bash("echo before; sleep 600", timeout_ms=300)
        assert (slow.timed_out, slow.is_error) == (True, True)
        assert "before" in slow.text
        long = session.bash("seq 1 200000")
        assert long.truncated
        assert long.total_bytes is not None
        assert long.total_bytes > long.omitted_bytes > 0


def test_contexts_have_shells_of_their_own(client: cloister.Client) -> None:
    with client.create_session("env") as session:
        session.bash("X=1", context="one")
        assert session.bash("echo ${X:-unset}", context="two").text == "unset"
        assert session.bash("echo ${X:-unset}", context="one").text == "1"
        session.close_context("one")
        assert session.bash("echo ${X:-unset}", context="one").text == "unset"
        session.close_context("never opened")


def test_what_create_sends(client: cloister.Client, sessions: FakeSessions) -> None:
    file = cloister.File("/workspace/a", b"a", mode=0o600)
    with client.create_session(
        "env", name="mine", env={"A": "1"}, files=[file], idle_timeout=90, max_lifetime=1.5
    ) as session:
        assert (session.name, session.uid) == ("mine", SESSION_UID)
        assert (session.environment, session.pod_name) == ("env", "sandbox-0")
    (sent,) = sessions.created
    assert sent.namespace == "cloister-sandboxes"
    assert dict(sent.env) == {"A": "1"}
    assert list(sent.files) == [pb.File(path="/workspace/a", mode=0o600, content=b"a")]
    assert (sent.idle_timeout.seconds, sent.max_lifetime.nanos) == (90, 500_000_000)
    assert len(sent.request_id) >= 16


def test_leaving_ends_what_was_created_and_nothing_else(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    made = client.create_session("env", name="mine")
    with client.get_session("mine") as attached:
        assert attached.bash("echo hello").text == "hello"
    assert list(sessions.sessions) == ["mine"]
    made.close()
    made.close()
    assert sessions.sessions == {}
    with pytest.raises(cloister.CallCancelledError):
        made.bash("true")


def test_a_session_that_is_gone_closes_without_error(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    with client.create_session("env"):
        sessions.sessions.clear()


def test_listing(client: cloister.Client, sessions: FakeSessions) -> None:
    with client.create_session("one", name="a"), client.create_session("two", name="b"):
        assert [each.name for each in client.list_sessions()] == ["a", "b"]
        (found,) = client.list_sessions(environment="two")
        assert (found.name, found.phase, found.ended) == ("b", "Running", False)
        assert found.created_at is not None
        assert found.expires_at is None


def test_the_module_level_function(
    kubeconfig: str, monkeypatch: pytest.MonkeyPatch, sessions: FakeSessions
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    with cloister.session("data-analysis") as session:
        assert session.bash("echo 42").text == "42"
    assert sessions.sessions == {}


async def test_asyncio(
    kubeconfig: str, monkeypatch: pytest.MonkeyPatch, sessions: FakeSessions
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    async with cloister.aio.session("data-analysis") as session:
        slow = session.bash("sleep 0.2; echo slow", context="a")
        quick = session.bash("echo quick", context="b")
        results = await asyncio.gather(slow, quick)
        assert [each.text for each in results] == ["slow", "quick"]
    assert sessions.sessions == {}


def pid_in(file: Path) -> int | None:
    """The number in a file, once it is there."""
    text = file.read_text().strip() if file.exists() else ""
    return int(text) if text else None


def gone(pid: int) -> bool | None:
    """True once there is no such process."""
    return None if Path(f"/proc/{pid}").exists() else True


async def test_cancelling_stops_the_command(kubeconfig: str, server: Sandbox) -> None:
    async with (
        cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client,
        await client.create_session("env") as session,
    ):
        pid_file = server.workspace / "pid"
        task = asyncio.create_task(session.bash(f"sleep 600 & echo $! > {pid_file}; wait"))
        pid = await asyncio.to_thread(wait_for, "its pid", lambda: pid_in(pid_file))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_for, "its end", lambda: gone(pid), 10)
        assert (await session.bash("echo next")).text == "next"


def test_the_token_comes_from_the_configuration_or_from_a_token_request(
    client: cloister.Client, kube: FakeKube, sessions: FakeSessions, tmp_path: Path
) -> None:
    client.list_sessions()
    assert sessions.tokens == [f"Bearer {TOKEN}"]
    own = kube.kubeconfig(tmp_path, token="mine")
    with cloister.Client(kubeconfig=own, direct=True) as with_token:
        with_token.list_sessions()
    assert sessions.tokens[-1] == "Bearer mine"
    assert kube.callers[-1] == "Bearer mine"


def test_a_refused_token_is_replaced_once(client: cloister.Client, sessions: FakeSessions) -> None:
    refused = (grpc.StatusCode.UNAUTHENTICATED, "expired", b"")
    sessions.failures = [refused]
    assert client.list_sessions() == []
    sessions.failures = [refused, refused]
    with pytest.raises(cloister.UnauthenticatedError, match="expired"):
        client.list_sessions()


def test_a_certificate_is_renewed_before_it_expires(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    sessions.lifetime = timedelta(0)
    with client.create_session("env") as session:
        first = session.credentials
        assert session.bash("echo one").text == "one"
        assert sessions.renewals == 1
        assert session.credentials.certificate_pem != first.certificate_pem
        assert session.bash("echo two").text == "two"
        assert sessions.renewals == 1


def test_a_failed_renewal_is_no_failure_while_the_certificate_works(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    sessions.lifetime = timedelta(seconds=2)
    with client.create_session("env") as session:
        refused = (grpc.StatusCode.PERMISSION_DENIED, "not you", b"")
        session._async._connection._renew_at = 0.0
        sessions.failures = [refused]
        assert session.bash("echo one").text == "one"
        assert sessions.failures == []


def test_keys_are_not_shown(client: cloister.Client) -> None:
    with client.create_session("env") as session:
        assert "PRIVATE" not in repr(session.credentials)
        assert repr(session) == "<Session cloister-sandboxes/s1>"


def test_a_server_without_the_sessions_name_gets_no_call(
    client: cloister.Client, sessions: FakeSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "RETRY_SECONDS", 0.3)
    client.create_session("env", name="mine").close(delete=False)
    sessions.sessions["mine"].server_name = "session-other.sandbox.cloister.dev"
    with client.get_session("mine") as session, pytest.raises(cloister.UnavailableError):
        session.bash("true")


def test_attaching_to_a_session_that_has_ended_says_why(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    client.create_session("env", name="mine")
    found = sessions.sessions["mine"]
    found.phase, found.reason = pb.Session.PHASE_FAILED, "OOMKilled"
    found.message = "it used more than 1Gi of memory"
    with pytest.raises(cloister.SessionEndedError, match="more than 1Gi") as ended:
        client.get_session("mine")
    assert (ended.value.phase, ended.value.reason) == ("Failed", "OOMKilled")
    found.phase, found.pod_name = pb.Session.PHASE_PENDING, ""
    with pytest.raises(cloister.UnavailableError, match="session mine is pending"):
        client.get_session("mine")


def test_blocking_calls_on_the_librarys_own_loop_are_refused(client: cloister.Client) -> None:
    async def blocking() -> None:
        client.list_sessions()

    with pytest.raises(RuntimeError, match="AsyncClient"):
        _sync_loop.run(blocking)
