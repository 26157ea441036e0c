"""A real exec server in a process of its own, for tests and benchmarks on one machine."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from support.certificates import Pair, TestAuthority

POD_UID = "pod-uid-1"
SESSION_UID = "session-uid-1"
POD_NAME = f"pod-{POD_UID}.sandbox.cloister.dev"
SESSION_NAME = f"session-{SESSION_UID}.sandbox.cloister.dev"
OPERATOR = "operator:cloister"


@dataclass
class Sandbox:
    """A running exec server and how to reach it."""

    authority: TestAuthority
    port: int
    process: "subprocess.Popen[bytes]"
    workspace: Path
    command: list[str]
    env: dict[str, str]

    def channel(self, caller: Pair | None, name: str, ca: bytes | None = None) -> grpc.Channel:
        """A channel with a caller's certificate, expecting the server under this name."""
        credentials = grpc.ssl_channel_credentials(
            ca or self.authority.pem,
            caller.private_key if caller else None,
            caller.certificate if caller else None,
        )
        options = [
            ("grpc.ssl_target_name_override", name),
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
            # Whoever knocks before the server listens would wait for a second otherwise.
            ("grpc.initial_reconnect_backoff_ms", 10),
            ("grpc.min_reconnect_backoff_ms", 20_000),  # for one attempt
            ("grpc.max_reconnect_backoff_ms", 100),
        ]
        return grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options)

    def operator(self, name: str = POD_NAME) -> grpc.Channel:
        """The operator's channel."""
        return self.channel(self.authority.issue(uri=OPERATOR), name)

    def worker(self) -> grpc.Channel:
        """The session's own worker."""
        return self.channel(self.authority.issue(uri=f"session:{SESSION_UID}"), SESSION_NAME)

    def wait_for(
        self, state: "exec_pb2.RuntimeInfo.State.ValueType", name: str = POD_NAME
    ) -> exec_pb2.RuntimeInfo:
        """Wait until the server, known by this name, reports a state."""
        end = time.monotonic() + 60
        with self.operator(name) as channel:
            stub = exec_pb2_grpc.RuntimeStub(channel)
            while True:
                with contextlib.suppress(grpc.RpcError):
                    info: exec_pb2.RuntimeInfo = stub.Info(exec_pb2.InfoRequest(), timeout=5)
                    if info.state == state:
                        return info
                    if info.awaits_proof:
                        stub.Prepare(exec_pb2.PrepareRequest(), timeout=5)
                assert self.process.poll() is None, "the exec server ended"
                assert time.monotonic() < end, f"state {state} was not reached"
                time.sleep(0.005)

    def begin_drain(self, channel: grpc.Channel) -> "grpc.Future[exec_pb2.DrainResponse]":
        """Drain the claimed pod, over the operator's channel, for half a minute at most; returns
        when no new calls are taken, with what is done when the pod is drained.
        """
        request = exec_pb2.DrainRequest()
        request.grace.FromSeconds(30)
        draining = exec_pb2_grpc.RuntimeStub(channel).Drain.future(request, timeout=60)
        self.wait_for(exec_pb2.RuntimeInfo.STATE_DRAINING, SESSION_NAME)
        return draining

    def claim(self, session_uid: str = SESSION_UID, **fields: Any) -> exec_pb2.ClaimResponse:
        """Claim the pod as the operator does."""
        pair = self.authority.issue(dns=f"session-{session_uid}.sandbox.cloister.dev")
        request = exec_pb2.ClaimRequest(
            **{
                "session_uid": session_uid,
                "session_name": "s",
                "pod_uid": POD_UID,
                "certificate_pem": pair.certificate,
                "private_key_pem": pair.private_key,
                **fields,
            }
        )
        with self.operator() as channel:
            response: exec_pb2.ClaimResponse = exec_pb2_grpc.RuntimeStub(channel).Claim(
                request, timeout=5
            )
            return response


class Tools:
    """Calls tools over a channel as a worker does."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = exec_pb2_grpc.ToolsStub(channel)

    def call(
        self,
        tool: str,
        request_id: str = "",
        *,
        context_id: str = "",
        budget: float = 0,
        **given: Any,
    ) -> exec_pb2.CallResult:
        """Run one tool; returns its result. The budget is in seconds."""
        request = exec_pb2.CallRequest(
            request_id=request_id or uuid.uuid4().hex, tool=tool, context_id=context_id
        )
        request.budget.FromMicroseconds(int(budget * 1e6))
        request.input.update(given)
        last = None
        for event in self.stub.Call(request, timeout=60):
            last = event
        assert last is not None
        assert last.HasField("result")
        return last.result

    def text(self, tool: str, **given: Any) -> str:
        """The text a tool answers with."""
        return self.call(tool, **given).content[0].text

    def bash(self, command: str, **given: Any) -> str:
        """The text of a command's result."""
        return self.text("bash", command=command, **given)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, message: str = "", reason: str = "") -> Iterator[None]:
    """A block whose call must fail: with this status, a message that begins so, this reason."""
    with pytest.raises(grpc.RpcError) as failure:
        yield
    error: Any = failure.value
    assert error.code() is code, error.details()
    assert error.details().startswith(message)
    details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    assert reason.encode() in details


_given: set[int] = set()
"""Ports that were given: who got one may not listen on it yet, or not at this moment."""
_WORKERS = 8
"""Processes of one run of the tests that share no port."""


def free_port() -> int:
    """A TCP port nobody listens on, at any address of this machine; given once.

    It is none of those that the kernel gives to connections: one of these would take it before the
    test does.
    """
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ours = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    while True:
        port = 10_000 + secrets.randbelow(max(10_000, given - 10_000))
        port += ours - port % _WORKERS
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            _given.add(port)
            return port


@contextlib.contextmanager
def sandbox(
    directory: Path,
    recipe: dict[str, Any] | None = None,
    *,
    env: dict[str, str] | None = None,
    open_files: int = 1024,
    launcher: Sequence[str] = (),
    authority: TestAuthority | None = None,
    **payload: bytes,
) -> Iterator[Sandbox]:
    """Start an exec server below `directory`, with more variables and a bound of open files.

    `launcher` is a command before its own, which may change what the server runs in; `authority`
    says who it is and whom it hears.
    It is stopped afterwards, and must leave no process behind.
    """
    authority = authority or TestAuthority()
    identity, recipes = directory / "identity", directory / "recipe"
    workspace, home = directory / "workspace", directory / "home"
    for each in (identity, recipes, workspace, home):
        each.mkdir(parents=True)
    pair = authority.issue(dns=POD_NAME)
    (identity / "tls.crt").write_bytes(pair.certificate)
    (identity / "tls.key").write_bytes(pair.private_key)
    (identity / "ca.crt").write_bytes(authority.pem)
    if recipe is not None:
        (recipes / "recipe.json").write_text(json.dumps(recipe))
        for name, content in payload.items():
            (recipes / name).write_bytes(content)
    port = free_port()
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CLOISTER_POD_UID": POD_UID,
        "CLOISTER_LISTEN": f"127.0.0.1:{port}",
        "CLOISTER_IDENTITY_DIR": str(identity),
        "CLOISTER_RECIPE_DIR": str(recipes),
        "CLOISTER_STATE_DIR": str(directory / "state"),
        "CLOISTER_WORKSPACE": str(workspace),
        "CLOISTER_HOME": str(home),
        "CLOISTER_ROOTS": str(directory / "extra"),
        "CLOISTER_READ_ONLY_ROOTS": str(directory / "extra" / "uploads"),
        **(env or {}),
    }
    command = [sys.executable, "-m", "cloister_sandbox"]
    limited = ["/bin/bash", "-c", f'ulimit -n {open_files}; exec "$@"', "-", *launcher, *command]
    # The kernel counts this process's peak as the server's own.
    Path("/proc/self/clear_refs").write_text("5")
    process = subprocess.Popen(limited, env=variables)
    try:
        yield Sandbox(authority, port, process, workspace, command, variables)
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert processes_with(f"HOME={home}") == []


def processes_with(variable: str) -> list[str]:
    """The names of the processes that have this variable in their environment."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (directory / "environ").read_bytes().split(b"\0"):
                found.append((directory / "comm").read_text().strip())
    return found
