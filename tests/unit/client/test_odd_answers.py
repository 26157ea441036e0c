"""A sandbox that answers as no exec server does: what callers see, and what is done once."""

import functools
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import cloister
from cloister.cli import main
from cloister_api.exec.v1 import exec_pb2
from support.fake_sessions import FakeSessions
from support.hostile_pod import HostilePod
from support.sandbox_server import Sandbox
from support.taken_over import taken_over

pytestmark = pytest.mark.long


class Nothing(grpc.GenericRpcHandler):
    """Ends each call well, and without an answer."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Every call."""
        return grpc.stream_stream_rpc_method_handler(lambda *_: iter(()))


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.stat("/workspace"),
        lambda session: session.processes(),
        lambda session: session.write_bytes("file", b"x"),
        lambda session: session.server_info(),
    ],
    ids=["single", "list", "upload", "info"],
)
def test_no_answer_at_all_is_said_to_be_none(
    client: cloister.Client,
    server: Sandbox,
    sessions: FakeSessions,
    call: Callable[[cloister.Session], object],
) -> None:
    def add(running: grpc.Server) -> None:
        running.add_generic_rpc_handlers((Nothing(),))

    with (
        taken_over(server, sessions, add),
        client.create_session("env") as session,
        pytest.raises(cloister.DataLossError, match="no answer to this call"),
    ):
        call(session)


class Restarted(HostilePod):
    """Is another server after each edit, whose answer is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.edits = 0

    def Info(self, request: Any, context: Any) -> Any:  # noqa: N802
        return exec_pb2.RuntimeInfo(boot_id=f"b{self.edits}", capabilities=self.capabilities)

    def Edit(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.edits += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is cut")


def test_an_edit_is_not_made_again_on_another_server(
    client: cloister.Client, server: Sandbox, sessions: FakeSessions
) -> None:
    """Only the server that made it knows its id: another one would make it twice."""
    pod = Restarted()  # type: ignore[abstract]
    change = [cloister.Replacement("a", "aa")]
    with (
        taken_over(server, sessions, pod.add),
        client.create_session("env") as session,
        pytest.raises(cloister.OutcomeUnknownError),
    ):
        session.files.edit("file", change)
    assert pod.edits == 1


class Ends(HostilePod):
    """Says of every program and command that it ended as a test wants."""

    how = exec_pb2.ExitInfo()

    def Attach(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield exec_pb2.OutputEvent(seq=1, started=exec_pb2.Started(id=request.process_id))
        yield exec_pb2.OutputEvent(seq=2, exited=self.how)

    def Release(self, request: Any, context: Any) -> Any:  # noqa: N802
        return exec_pb2.ReleaseResponse()

    def Call(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield exec_pb2.CallEvent(result=exec_pb2.CallResult(exit=self.how))


@pytest.mark.parametrize("shell", [(), ("--shell", "s")], ids=["program", "shell"])
@pytest.mark.parametrize(
    "how",
    [
        exec_pb2.ExitInfo(code=256),
        exec_pb2.ExitInfo(code=-256),
        exec_pb2.ExitInfo(code=2**31 - 256),
        exec_pb2.ExitInfo(signal=128),
    ],
    ids=["code", "negative", "large", "signal"],
)
def test_a_code_that_no_command_ends_with_is_no_success(
    server: Sandbox,
    sessions: FakeSessions,
    kubeconfig: str,
    monkeypatch: pytest.MonkeyPatch,
    how: exec_pb2.ExitInfo,
    shell: tuple[str, ...],
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    monkeypatch.setattr("cloister.cli.Client", functools.partial(cloister.Client, direct=True))
    pod = Ends()  # type: ignore[abstract]
    pod.how = how
    with taken_over(server, sessions, pod.add):
        assert main(["session", "create", "env", "--name", "mine"]) == 0
        assert main(["exec", "mine", "--no-stdin", *shell, "--", "true"]) == 1
