"""The same calls to sandboxes of the bundled cluster, under runc and under gVisor."""

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from bench.calls import timed
from bench.peers import Peer
from bench.results import percentile
from bench.sandbox_client import Sizes

import cloister
import target as targets
from cloister_devcluster import places
from cloister_devcluster.node import holder
from deploy import deploy
from target import SANDBOX_NAMESPACE, Target, TargetError

ROOT = Path(__file__).resolve().parent.parent
KUBECTL_CALLS = 20
GVISOR = "gvisor"
# Its handler refuses pods with a user namespace.
SETTINGS = {"sandbox.allowedRuntimeClasses[0]": GVISOR, "sandbox.userNamespaces": "false"}


@contextlib.contextmanager
def environment(target: Target, runtime_class: str) -> Iterator[str]:
    """The name of an Environment with a warm pod."""
    name = f"bench-exec-{secrets.token_hex(3)}"
    spec: dict[str, object] = {
        "pool": {"size": 1},
        "resources": {"cpu": "2", "memory": "2Gi", "disk": "4Gi"},
    }
    if runtime_class:
        spec["isolation"] = {"runtimeClassName": runtime_class}
    made = {
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "Environment",
        "metadata": {"name": name, "namespace": SANDBOX_NAMESPACE},
        "spec": spec,
    }
    where = ("-n", SANDBOX_NAMESPACE)
    target.kubectl("apply", "-f", "-", stdin=json.dumps(made))
    try:
        ready = ("--for=condition=PoolReady", "--timeout=60s")
        target.kubectl("wait", f"environment/{name}", *where, *ready)
        yield name
    finally:
        target.kubectl("delete", "environment", name, *where, "--wait=false")


@contextlib.contextmanager
def claimed(target: Target, name: str) -> Iterator[cloister.Session]:
    """A session of an Environment whose pool is then let go."""
    with cloister.Client(namespace=SANDBOX_NAMESPACE, kubeconfig=target.kubeconfig) as client:
        session = client.create_session(name)
        try:
            patch = json.dumps({"spec": {"pool": {"size": 0}}})
            where = ("-n", SANDBOX_NAMESPACE)
            # The sandbox that is measured shall not share the cores with another's start.
            target.kubectl("patch", "environment", name, *where, "--type=merge", "-p", patch)
            yield session
        finally:
            session.close(delete=True)


def worker(session: cloister.Session) -> Peer:
    """The session's worker as a peer, which calls the pod's address."""
    own = session.credentials
    return Peer(
        session.info.endpoint,
        session.server_name,
        own.ca_pem.decode(),
        own.certificate_pem.decode(),
        own.private_key_pem.decode(),
    )


def in_sandbox(worker: Peer, sizes: Sizes) -> dict[str, float]:
    """The figures of one sandbox, by a client on the node: only its addresses reach every port."""
    node = holder(places.here())
    if node is None:
        raise TargetError("the bundled cluster's node is gone")
    script = str(ROOT / "bench" / "sandbox_client.py")
    done = subprocess.run(
        ["nsenter", f"--target={node}", "--net", "--", sys.executable, script],
        input=json.dumps({"worker": asdict(worker), "sizes": asdict(sizes)}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TargetError("the client on the node failed, see above")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def kubectl_exec(target: Target, pod: str, count: int) -> float:
    """The median ms of `bash -c :` through kubectl, which connects anew for each, as it must."""
    # Nobody else may: the chart's admission policies let the break-glass group alone.
    who = ("--as=bench", "--as-group=system:masters", "--as-group=cloister:break-glass")
    where = ("-n", SANDBOX_NAMESPACE, pod)
    command = (target.kubectl_path, "exec", *who, *where, "--", "bash", "-c", ":")

    def run() -> None:
        subprocess.run(command, env=target.env, check=True, capture_output=True)

    run()
    return round(percentile([timed(run) for _ in range(count)], 0.5), 1)


def measure(sizes: Sizes, say: Callable[[str], None]) -> dict[str, float]:
    """The figures; the cluster is started if it is down, and then stopped again."""
    was_running = targets.bundled_runs()
    figures: dict[str, float] = {}
    try:
        target = targets.bundled()
        for name, runtime_class, settings in (("runc", "", {}), ("gvisor", GVISOR, SETTINGS)):
            say(f"Cloister for {name}")
            deploy(target, settings)
            with environment(target, runtime_class) as made, claimed(target, made) as session:
                say(f"in a pod under {name}")
                found = in_sandbox(worker(session), sizes)
                figures.update({f"{name}_{key}": value for key, value in found.items()})
                if name == "runc":
                    figures["kubectl_exec_p50_ms"] = kubectl_exec(
                        target, session.pod_name, KUBECTL_CALLS
                    )
    finally:
        if not was_running:
            targets.devcluster("down")
    return figures
