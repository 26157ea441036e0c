"""Servers in processes of their own on loopback: the exec server, and the floors."""

import atexit
import compileall
import contextlib
import functools
import os
import py_compile
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.certificates import Authority, identity, write_files
from bench.peers import Peer, peer
from cryptography import x509

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
POD_UID = "bench-pod"
SESSION_UID = "bench-session"
POD_NAME = f"pod-{POD_UID}.sandbox.cloister.dev"
SESSION_NAME = f"session-{SESSION_UID}.sandbox.cloister.dev"
OPERATOR = "operator:cloister"
WORKER = f"session:{SESSION_UID}"
START_SECONDS = 60.0
"""In which an exec server must have become warm."""


@dataclass(frozen=True)
class ExecServer:
    """An exec server that is warm."""

    process: "subprocess.Popen[bytes]"
    operator: Peer
    ready_ms: float
    """From its start to the first answer of Runtime.Info."""

    def claim(self, authority: Authority) -> Peer:
        """Give the pod to the session, as the operator does; returns the session's worker."""
        pair = authority.issue(x509.DNSName(SESSION_NAME))
        with self.operator.channel() as operator:
            exec_pb2_grpc.RuntimeStub(operator).Claim(
                exec_pb2.ClaimRequest(
                    session_uid=SESSION_UID,
                    session_name="bench",
                    pod_uid=POD_UID,
                    certificate_pem=pair.certificate,
                    private_key_pem=pair.private_key,
                ),
                timeout=10,
            )
        return peer(authority, WORKER, self.operator.address, SESSION_NAME)


def settings(directory: str, workspace: str, address: str) -> dict[str, str]:
    """The environment variables of an exec server whose files are in `directory`."""
    return {
        "CLOISTER_POD_UID": POD_UID,
        "CLOISTER_LISTEN": address,
        "CLOISTER_IDENTITY_DIR": f"{directory}/identity",
        "CLOISTER_RECIPE_DIR": f"{directory}/recipe",
        "CLOISTER_STATE_DIR": f"{directory}/state",
        "CLOISTER_WORKSPACE": workspace,
        "CLOISTER_HOME": f"{directory}/home",
        "CLOISTER_ROOTS": f"{directory}/home",
    }


def wait_warm(operator: Peer) -> None:
    """Return with the answer of Runtime.Info that says that the server is warm.

    Raises TimeoutError where none answers within a minute.
    """
    host, _, port = operator.address.rpartition(":")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        # gRPC dials again in its own time only; and on two cores its dialling slows the start.
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, port)):
            break
        time.sleep(0.001)
    else:
        raise TimeoutError(f"no exec server listens on {operator.address}")
    with operator.channel() as channel:
        info = exec_pb2_grpc.RuntimeStub(channel)
        state = None
        while state != exec_pb2.RuntimeInfo.STATE_WARM:
            if time.monotonic() > deadline:
                raise TimeoutError("the exec server does not become warm")
            state = info.Info(exec_pb2.InfoRequest(), timeout=20, wait_for_ready=True).state


@functools.cache
def compiled() -> str:
    """The exec server's packages, compiled as in the image, where no file is compared with its
    source; removed when this process ends.
    """
    folder = tempfile.mkdtemp(prefix="cloister-bench-")
    atexit.register(shutil.rmtree, folder)
    for package in ("sandbox-image/src/cloister_sandbox", "proto/cloister_api"):
        source = ROOT / package
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, Path(folder, source.name), ignore=ignored)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(folder, quiet=1, invalidation_mode=mode)
    return folder


@contextlib.contextmanager
def exec_server(directory: Path, workspace: Path, authority: Authority) -> Iterator[ExecServer]:
    """A warm exec server. `directory` is its own; the workspace belongs on a disk."""
    write_files(directory / "identity", identity(authority, POD_NAME))
    for path in (directory / "recipe", directory / "home", workspace):
        path.mkdir(parents=True)
    address = f"127.0.0.1:{free_port()}"
    operator = peer(authority, OPERATOR, address, POD_NAME)
    env = settings(str(directory), str(workspace), address)
    env["PYTHONPATH"] = os.pathsep.join([compiled(), *sys.path[1:]])
    began = time.perf_counter()
    with running([sys.executable, "-m", "cloister_sandbox"], env) as process:
        wait_warm(operator)
        yield ExecServer(process, operator, (time.perf_counter() - began) * 1000)


@contextlib.contextmanager
def floor_server(
    directory: Path, authority: Authority, answers: Mapping[str, bytes]
) -> Iterator[tuple["subprocess.Popen[bytes]", Peer]]:
    """The bare server, which answers calls of the tools with these events."""
    files = {f"{tool}.answer": event for tool, event in answers.items()}
    write_files(directory, {**identity(authority, SESSION_NAME), **files})
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, str(ROOT / "bench" / "floors.py"), address, str(directory)]
    with running(command, {"GRPC_ENABLE_FORK_SUPPORT": "0"}) as process:
        yield process, peer(authority, WORKER, address, SESSION_NAME)


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], *, pipes: bool = False
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is ended afterwards; `pipes` are to its input and from its output."""
    paths = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    pipe = subprocess.PIPE if pipes else None
    process = subprocess.Popen(command, env={**paths, **env}, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} is gone")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
