"""Lost connections and refusals: what is repeated, what is reported, and how."""

import asyncio
import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

import cloister
from cloister import _connection, _sessions_api, _sync_loop, _uploading
from cloister._kube import Kube
from cloister_api.sessions.v1 import sessions_pb2 as pb
from support.cluster import wait_for
from support.fake_kube import FakeKube
from support.fake_sessions import FakeSessions
from support.sandbox_server import Sandbox


class Proxy:
    """A TCP relay whose connections can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.refusing = False
        self.answering = threading.Event()
        """Cleared, no bytes of the server's are passed on."""
        self.answering.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> int:
        """Cut all connections; returns how many there were."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.answering.set()
        self.cut()
        for each in self._threads:
            each.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.refusing:
                    near.close()
                    continue
                pair = (near, socket.create_connection(("127.0.0.1", self._target)))
                self._pairs.append(pair)
                thread = threading.Thread(target=self._relay, args=pair)
                self._threads.append(thread)
                thread.start()

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, contextlib.suppress(OSError):
            while True:
                for ready in select.select([near, far], [], [])[0]:
                    data = ready.recv(65_536)
                    if not data:
                        return
                    if ready is far:
                        self.answering.wait()
                    (far if ready is near else near).sendall(data)


@pytest.fixture
def proxy(server: Sandbox, sessions: FakeSessions) -> Iterator[Proxy]:
    """Stands between the client and the exec server."""
    made = Proxy(server.port)
    sessions.endpoint = f"127.0.0.1:{made.port}"
    yield made
    made.close()


def test_a_call_survives_the_loss_of_its_connection_and_runs_once(
    client: cloister.Client, server: Sandbox, proxy: Proxy
) -> None:
    command = "echo ran >> ran; while [ ! -e go ]; do sleep 0.02; done; wc -l < ran"
    with client.create_session("env") as session, ThreadPoolExecutor() as pool:
        running = pool.submit(session.bash, command)
        wait_for("the command runs", lambda: (server.workspace / "ran").exists() or None, 10)
        assert proxy.cut() == 1
        wait_for("a new connection", lambda: proxy._pairs or None, 10)
        (server.workspace / "go").touch()
        result = running.result()
        assert (result.text.strip(), result.exit_code, result.replayed) == ("1", 0, True)


@pytest.mark.parametrize(
    "call",
    [
        lambda files: files.read_text("text").text,
        lambda files: str(files.grep("one", "text").matches),
        lambda files: str(files.glob("text").total),
        lambda files: str(files.edit("text", [cloister.Replacement("one", "two")]).counts),
    ],
    ids=["read_text", "grep", "glob", "edit"],
)
def test_calls_that_were_long_at_work_are_repeated_too(
    client: cloister.Client,
    server: Sandbox,
    proxy: Proxy,
    call: Callable[[cloister.Files], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They say nothing before their end, which may be later than others are repeated for."""
    monkeypatch.setattr(_connection, "RETRY_SECONDS", 1.0)
    with client.create_session("env") as session, ThreadPoolExecutor() as pool:
        session.write_bytes("text", b"one\n")
        expected = {"read_text": "one\n", "edit": "(1,)"}
        session.server_info()
        proxy.answering.clear()
        running = pool.submit(call, session.files)
        began = time.monotonic()
        wait_for("as long as others are", lambda: time.monotonic() > began + 1.1 or None, 10)
        proxy.cut()
        proxy.answering.set()
        assert running.result() in ("1", *expected.values())


def test_what_has_arrived_is_waited_for_the_longer_the_more_it_is(
    client: cloister.Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client.create_session("env") as session, ThreadPoolExecutor() as pool:
        session.write_bytes("slow", b"")  # opens the connection, which takes its time
        monkeypatch.setattr(_connection, "RETRY_SECONDS", 0.1)
        monkeypatch.setattr(_uploading, "STALL_SECONDS", 0.2)
        monkeypatch.setattr(_uploading, "SLOWEST", 1)
        proxy.answering.clear()
        running = pool.submit(session.write_bytes, "slow", b"x" * 60)
        began = time.monotonic()
        wait_for("too long for less", lambda: time.monotonic() > began + 0.5 or None, 10)
        proxy.answering.set()
        assert running.result().size == 60


def test_a_call_that_is_cut_again_and_again_ends(
    client: cloister.Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "RETRY_SECONDS", 0.5)
    over = threading.Event()

    def cut() -> None:
        while not over.wait(0.05):
            proxy.cut()

    with client.create_session("env") as session, ThreadPoolExecutor() as pool:
        session.write_bytes("text", b"one\n")
        session.server_info()
        proxy.answering.clear()
        cutting = pool.submit(cut)
        try:
            with pytest.raises(cloister.UnavailableError):
                session.files.read_text("text")
        finally:
            over.set()
            cutting.result()
            proxy.answering.set()


def test_transfers_survive_it_too(client: cloister.Client, server: Sandbox, proxy: Proxy) -> None:
    content = bytes(range(256)) * 40_000
    with client.create_session("env") as session:
        session.write_bytes("big", content)
        received = bytearray()

        def keep(data: bytes) -> None:
            if not received:
                proxy.cut()
            received.extend(data)

        _sync_loop.run(lambda: session._async._files.read("big", keep))
        assert bytes(received) == content


def test_an_exec_server_that_stays_away_is_reported_in_time(
    client: cloister.Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "RETRY_SECONDS", 0.3)
    with client.create_session("env") as session:
        proxy.refusing = True
        proxy.cut()
        with pytest.raises(cloister.UnavailableError):
            session.bash("true")


@pytest.mark.parametrize("phase", [pb.Session.PHASE_FAILED, pb.Session.PHASE_TERMINATED])
def test_the_end_of_a_session_is_told_apart_from_a_lost_connection(
    client: cloister.Client,
    sessions: FakeSessions,
    phase: pb.Session.Phase.ValueType,
    proxy: Proxy,
) -> None:
    with client.create_session("env", name="mine") as session:
        proxy.refusing = True
        found = sessions.sessions["mine"]
        found.phase, found.reason, found.message = phase, "Idle", "it was idle for 30m"
        with pytest.raises(cloister.SessionEndedError, match="it was idle for 30m") as error:
            session.bash("true")
        assert error.value.reason == "Idle"


def test_another_session_of_the_same_name_is_not_taken_for_it(
    client: cloister.Client, sessions: FakeSessions, proxy: Proxy
) -> None:
    with client.create_session("env", name="mine") as session:
        proxy.refusing = True
        sessions.sessions["mine"].uid = "another"
        with pytest.raises(cloister.NotFoundError, match="another one has its name"):
            session.bash("true")


def test_create_repeats_under_one_request_id(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    sessions.failures = [(grpc.StatusCode.UNAVAILABLE, "restarting", b"")] * 2
    with client.create_session("env"):
        assert len(sessions.tokens) == 3


def test_a_deletion_whose_answer_was_lost_is_a_success(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    client.create_session("env", name="mine")
    sessions.lost_deletes = 1
    client.delete_session("mine")
    with pytest.raises(cloister.NotFoundError):
        client.delete_session("mine")


def test_refusals_are_not_repeated_and_keep_their_details(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    violation = b"\x0a\x04name\x12\x03bad"
    info = b"\x0a\x0dINVALID_FIELD\x12\x01d\x1a\x06\x0a\x01k\x12\x01v"
    details = b"\x08\x03\x12\x01m"
    for kind, value in ((b"ErrorInfo", info), (b"BadRequest", b"\x0a\x0b" + violation)):
        url = b"type.googleapis.com/google.rpc." + kind
        each = b"\x0a" + bytes([len(url)]) + url + b"\x12" + bytes([len(value)]) + value
        details += b"\x1a" + bytes([len(each)]) + each
    sessions.failures = [(grpc.StatusCode.INVALID_ARGUMENT, "name: bad", details)]
    with pytest.raises(cloister.InvalidArgumentError, match=r"^name: bad$") as error:
        client.create_session("env", name="Bad")
    assert (error.value.reason, error.value.field) == ("INVALID_FIELD", "name")
    assert dict(error.value.metadata) == {"k": "v"}
    assert len(sessions.tokens) == 1


def refusal(reason: str, seconds: float) -> bytes:
    """The details of a refusal with a hint when to come again."""
    status = status_pb2.Status(code=8)
    for each in (
        error_details_pb2.ErrorInfo(reason=reason),
        error_details_pb2.RetryInfo(retry_delay=Duration(nanos=int(seconds * 1e9))),
    ):
        status.details.add().Pack(each)
    raw: bytes = status.SerializeToString()
    return raw


@pytest.mark.parametrize("reason", ["RATE_LIMITED", "TOO_MANY_CALLS"])
def test_who_called_too_often_waits_as_told(
    client: cloister.Client, sessions: FakeSessions, reason: str
) -> None:
    refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", refusal(reason, 0.3))
    sessions.failures = [refused, refused]
    began = time.monotonic()
    client.list_sessions()
    assert time.monotonic() - began >= 0.6
    assert len(sessions.tokens) == 3


def test_a_quota_is_not_waited_for_but_says_when_to_come_again(
    client: cloister.Client, sessions: FakeSessions
) -> None:
    full = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", refusal("QUOTA_EXCEEDED", 0.5))
    sessions.failures = [full]
    with pytest.raises(cloister.ResourceExhaustedError, match="full") as error:
        client.create_session("env")
    assert (error.value.reason, error.value.retry_after) == ("QUOTA_EXCEEDED", 0.5)
    assert len(sessions.tokens) == 1


@pytest.mark.parametrize("details", [b"\x1a\xff", b"\xff" * 20, b"\x0b", b"\x1a\x02\x0a\x05"])
def test_malformed_details_are_no_details(
    client: cloister.Client, sessions: FakeSessions, details: bytes
) -> None:
    sessions.failures = [(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", details)]
    with pytest.raises(cloister.ResourceExhaustedError, match="full") as error:
        client.list_sessions()
    assert (error.value.reason, error.value.retry_after) == ("", None)


def test_cloister_is_not_installed(client: cloister.Client, kube: FakeKube) -> None:
    kube.client_config = None
    with pytest.raises(cloister.ConfigurationError, match="not installed in namespace"):
        client.list_sessions()
    kube.client_config = {"ca.crt": "x"}
    with pytest.raises(cloister.ConfigurationError, match="no sessionsAddress, sessionsServerName"):
        client.list_sessions()


def test_no_kubernetes_configuration() -> None:
    with (
        cloister.Client(kubeconfig="/nowhere/config") as client,
        pytest.raises(cloister.ConfigurationError, match="no usable Kubernetes configuration"),
    ):
        client.list_sessions()


def test_a_silent_sessions_api_is_reported(
    client: cloister.Client, kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sessions_api, "_RETRY_SECONDS", 0.2)
    assert kube.client_config is not None
    kube.client_config["sessionsAddress"] = "127.0.0.1:1"
    with pytest.raises(cloister.UnavailableError):
        client.list_sessions()


class _Hold:
    """Keeps the first call to a Sessions API waiting, and refuses the second one for now."""

    def __init__(self, sessions: FakeSessions) -> None:
        self._enter, self._calls = sessions._enter, 0
        self.began, self.go_on = threading.Event(), threading.Event()
        sessions._enter = self  # type: ignore[method-assign]

    def __call__(self, context: grpc.ServicerContext) -> None:
        self._calls += 1
        if self._calls == 1:
            self.began.set()
            self.go_on.wait()
        if self._calls == 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        self._enter(context)


async def _api(kubeconfig: str) -> _sessions_api.SessionsApi:
    kube = await Kube.load(kubeconfig, None)
    return _sessions_api.SessionsApi(
        kube, system_namespace="cloister-system", namespace="cloister-sandboxes", direct=True
    )


@pytest.mark.parametrize("closed", [False, True])
async def test_a_call_under_way_outlives_that_another_one_gives_the_connection_up(
    kubeconfig: str, sessions: FakeSessions, closed: bool
) -> None:
    """It was cancelled, and its caller told that he had wished it. The end of a client is one."""
    hold, api = _Hold(sessions), await _api(kubeconfig)
    request = pb.CreateSessionRequest(environment="env", name="s", request_id="r")
    creating = asyncio.create_task(api.create(request, 0))
    try:
        await asyncio.to_thread(hold.began.wait)
        if closed:
            await api.close()
            with pytest.raises(cloister.CallCancelledError, match="the client is closed"):
                await creating
            return
        with pytest.raises(cloister.UnavailableError, match="not now"):
            await api.get("cloister-sandboxes", "s", retry=False)
        made = await creating
        assert made.session.name == "s"
    finally:
        hold.go_on.set()
        await api.close()
        await api._kube.close()
