"""The pretended part of bench_scale.py: nodes and pods by kwok, and one process behind them all.

The API server, etcd, the scheduler, the controller manager and the operator are real. kwok writes
what a kubelet would (pods run, have an address, go when they are deleted); the node routes the
addresses of its pods to itself, where bench/scale_pods.py answers as their exec servers.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import target as targets
from cloister_devcluster import node, places
from cloister_operator import names
from cloister_operator.identity import Authority
from target import SANDBOX_NAMESPACE, SYSTEM_NAMESPACE, Target, TargetError

ROOT = Path(__file__).resolve().parent.parent
NODES = 10
PODS_PER_NODE = 2000
LABEL = "cloister-bench"
Json = dict[str, Any]


def fake_node(number: int) -> Json:
    """A node that only kwok keeps: 4096 addresses, and a taint that keeps everybody else away."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"fake-{number}",
            "labels": {LABEL: "fake", "kubernetes.io/os": "linux"},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {
            "podCIDR": f"10.66.{16 * number}.0/20",
            "podCIDRs": [f"10.66.{16 * number}.0/20"],
            "taints": [{"key": LABEL, "value": "fake", "effect": "NoSchedule"}],
        },
        "status": {
            "allocatable": {"cpu": "4k", "memory": "16Ti", "pods": str(PODS_PER_NODE)}
            | {"ephemeral-storage": "64Ti"},
            "capacity": {"cpu": "4k", "memory": "16Ti", "pods": str(PODS_PER_NODE)}
            | {"ephemeral-storage": "64Ti"},
        },
    }


def environment(name: str, size: int, revision: str = "0") -> Json:
    """An Environment whose pods go to the fake nodes; its recipe changes with the revision."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.ENVIRONMENT_KIND,
        "metadata": {"name": name, "namespace": SANDBOX_NAMESPACE, "labels": {LABEL: "scale"}},
        "spec": {
            "env": [{"name": "REVISION", "value": revision}],
            "pool": {"size": size},
            "scheduling": {
                "nodeSelector": {LABEL: "fake"},
                "tolerations": [{"key": LABEL, "operator": "Exists"}],
            },
        },
    }


class Node:
    """The bundled cluster's node, as a place to run programs that see the host's files."""

    def __init__(self) -> None:
        pid = node.holder(places.here())
        if pid is None:
            raise TargetError("the bundled cluster does not run")
        self._enter = ["nsenter", f"--target={pid}", "--net", "--"]
        self.cgroup = f"/cloister-{places.here().id}/"

    def run(self, *command: str) -> None:
        """Run a command to its end."""
        subprocess.run([*self._enter, *command], check=True, capture_output=True)

    def start(self, *command: str, **pipes: Any) -> "subprocess.Popen[str]":
        """Start a command that sees our sources."""
        folders = ("proto", "operator/src", "bench")
        path = ":".join(str(ROOT / each) for each in folders)
        env = {**os.environ, "PYTHONPATH": path, "GRPC_VERBOSITY": "NONE"}
        return subprocess.Popen([*self._enter, *command], env=env, text=True, **pipes)

    def operator(self) -> int:
        """The host's PID of the operator's process, or 0."""
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                ours = self.cgroup in (path / "cgroup").read_text()
                if ours and b"cloister_operator" in words:
                    return int(path.name)
        return 0

    def kill_operator(self) -> None:
        """End the operator as a crash does."""
        pid = self.operator()
        if not pid:
            raise TargetError("the operator does not run")
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Pretended:
    """What stands in for nodes and exec servers."""

    kwok: "subprocess.Popen[str]"
    log: Path
    """What kwok says."""
    pods: "subprocess.Popen[str]"
    """The process behind the fake pods."""

    def check(self) -> None:
        """Raise TargetError when either has ended."""
        if self.kwok.poll() is not None:
            raise TargetError(f"kwok ended: {self.log.read_text()[-500:]}")
        if self.pods.poll() is not None:
            raise TargetError("the stand-in of the exec servers ended")

    def count(self) -> dict[str, int]:
        """End the fake pods; how many claims there were, and how many were refused."""
        self.pods.terminate()
        found: dict[str, int] = json.loads(self.pods.stdout.read() if self.pods.stdout else "{}")
        return found


@contextlib.contextmanager
def pretended(target: Target, here: Node) -> Iterator[Pretended]:
    """Fake nodes with kwok, and the process behind their pods."""
    with tempfile.TemporaryDirectory() as given, contextlib.ExitStack() as stack:
        folder = Path(given)
        _identity(target, folder)
        with contextlib.suppress(subprocess.CalledProcessError):
            # It stays when a run is cut short.
            here.run("ip", "route", "add", "local", "10.66.0.0/16", "dev", "lo")
        log = stack.enter_context((folder / "kwok.log").open("w"))
        kwok = here.start(
            targets.devcluster("bin", "kwok", quiet=True),
            f"--kubeconfig={target.kubeconfig}",
            f"--config={ROOT / 'bench' / 'scale_stages.yaml'}",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=120",
            "--v=WARN",
            stdout=log,
            stderr=log,
        )
        stack.callback(_end, kwok)
        pods = here.start(
            sys.executable,
            str(ROOT / "bench" / "scale_pods.py"),
            str(folder),
            stdout=subprocess.PIPE,
        )
        stack.callback(_end, pods)
        if not pods.stdout or pods.stdout.readline() != "ready\n":
            raise TargetError("the stand-in of the exec servers did not start")
        made = Pretended(kwok, folder / "kwok.log", pods)
        made.check()
        _make_nodes(target)
        yield made


def _make_nodes(target: Target) -> None:
    # Created, not applied: that alone lets the status in, with what the nodes have to give.
    body = {"apiVersion": "v1", "kind": "List", "items": [fake_node(each) for each in range(NODES)]}
    target.kubectl("delete", "nodes", "-l", f"{LABEL}=fake", "--ignore-not-found")
    target.kubectl("create", "-f", "-", stdin=json.dumps(body))


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def _identity(target: Target, folder: Path) -> None:
    """One certificate for all pods, signed by the operator's own CA."""
    found = json.loads(
        target.kubectl("get", "secret", names.CA_SECRET, "-n", SYSTEM_NAMESPACE, "-o", "json")
    )
    data = {key: base64.b64decode(value) for key, value in found["data"].items()}
    authority = Authority.from_pem(data["tls.crt"], data["tls.key"])
    every = "*" + names.pod_server_name("x").removeprefix("pod-x")
    made = authority.sessions_api_server(datetime.now(UTC), [every], [])
    (folder / "ca.crt").write_bytes(made.ca_pem)
    (folder / "tls.crt").write_bytes(made.certificate_pem)
    (folder / "tls.key").write_bytes(made.private_key_pem)


def apply(target: Target, *objects: Json) -> None:
    """Apply objects, by server-side apply: kubectl reads none of them first."""
    body = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    target.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(body))


def tear_down(target: Target) -> None:
    """Delete what was made here."""
    for kind in ("sessions", "environments"):
        target.kubectl("delete", kind, "--all", "-n", SANDBOX_NAMESPACE, "--wait=false")
    target.kubectl("delete", "nodes", "-l", f"{LABEL}=fake", "--ignore-not-found")
