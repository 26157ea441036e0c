"""Claims on the bundled cluster, measured by a worker that is a pod in it.

Warm: the call Sessions.Create, with a pool that is full before each. Its floor: the three writes
that a claim cannot do without, by themselves, while no operator runs. Cold: a pool of size 0, from
the call until the first command has answered. Its floor: a bare pod of the same image with the
same volumes, from its creation until the API server says that it runs; beside it one without
volumes, for which the kubelet does not wait. Prints the figures and writes
bench/results/claims.json.

    python bench/bench_claims.py [WARM] [COLD]
"""

import json
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "scripts")]

from bench.bare_writes import floor  # noqa: E402 - found through the path above
from bench.results import percentile, save, table  # noqa: E402

import target as targets  # noqa: E402 - found through the path above
from deploy import deploy  # noqa: E402
from target import IMAGES, SANDBOX_NAMESPACE, SYSTEM_NAMESPACE, Target, TargetError  # noqa: E402

NAMESPACE = "cloister-bench"
WARM, COLD = 100, 20
POOL = 5
DEADLINE = 600.0
Json = dict[str, Any]


def environment(name: str, size: int) -> Json:
    return {
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "Environment",
        "metadata": {"name": name, "namespace": SANDBOX_NAMESPACE},
        "spec": {"pool": {"size": size}},
    }


def grants() -> list[Json]:
    """A namespace for the worker, and its rights: to have sessions, to see which pods there are,
    and to have pods of its own in its namespace.
    """
    api_group = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "bare", "namespace": NAMESPACE},
            "stringData": {"key": "a" * 1000},
        },
        {
            "apiVersion": f"{api_group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": NAMESPACE, "namespace": SANDBOX_NAMESPACE},
            "roleRef": {"apiGroup": api_group, "kind": "Role", "name": "cloister-worker"},
            "subjects": [subject],
        },
        {
            "apiVersion": f"{api_group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"{NAMESPACE}-view", "namespace": SANDBOX_NAMESPACE},
            "roleRef": {"apiGroup": api_group, "kind": "ClusterRole", "name": "view"},
            "subjects": [subject],
        },
        {
            "apiVersion": f"{api_group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": NAMESPACE, "namespace": NAMESPACE},
            "roleRef": {"apiGroup": api_group, "kind": "ClusterRole", "name": "edit"},
            "subjects": [subject],
        },
    ]


def bare_pod(mounts: bool) -> Json:
    """A pod of the sandboxes' image, as confined as they are, that does nothing but start."""
    volumes: dict[str, Json] = {
        "/workspace": {"emptyDir": {"sizeLimit": "1Gi"}},
        "/tmp": {"emptyDir": {"sizeLimit": "2Gi"}},
        "/run/cloister/state": {"emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        "/run/cloister/identity": {"secret": {"secretName": "bare"}},
        "/run/cloister/recipe": {"secret": {"secretName": "bare"}},
    }
    named = [(f"v{index}", path, volume) for index, (path, volume) in enumerate(volumes.items())]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "hostUsers": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [{"name": name, **volume} for name, _, volume in named if mounts],
            "containers": [
                {
                    "name": "bare",
                    "image": targets.in_registry(IMAGES["sandbox"]),
                    "command": ["sleep", "60"],
                    "volumeMounts": [
                        {"name": name, "mountPath": path} for name, path, _ in named if mounts
                    ],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def worker(mode: str, environment_name: str, count: int, mounts: bool = True) -> Json:
    settings = {"MODE": mode, "ENVIRONMENT": environment_name, "COUNT": str(count)}
    settings |= {"NAMESPACE": NAMESPACE, "POD": json.dumps(bare_pod(mounts))}
    script = (ROOT / "bench" / "claims_worker.py").read_text()
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"worker-{mode}", "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "worker",
                    "image": targets.in_registry(IMAGES["client"]),
                    "command": ["python", "-I", "-c", script],
                    "env": [{"name": key, "value": value} for key, value in settings.items()],
                }
            ],
        },
    }


def apply(target: Target, *objects: Json) -> None:
    body = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    target.kubectl("apply", "-f", "-", stdin=json.dumps(body))


def run_worker(target: Target, pod: Json) -> list[float]:
    """The milliseconds that the worker printed; raises TargetError with its log."""
    name = pod["metadata"]["name"]
    apply(target, pod)
    end = time.monotonic() + DEADLINE
    phase = ""
    while phase not in ("Succeeded", "Failed"):
        if time.monotonic() > end:
            raise TargetError(f"pod {name} did not end within {DEADLINE:.0f} s")
        time.sleep(0.5)
        phase = target.kubectl(
            "get", "pod", name, "-n", NAMESPACE, "-o", "jsonpath={.status.phase}"
        )
    log = target.kubectl("logs", name, "-n", NAMESPACE)
    target.kubectl("delete", "pod", name, "-n", NAMESPACE)
    if phase == "Failed":
        raise TargetError(f"pod {name} failed:\n{log}")
    found: list[float] = json.loads(log.splitlines()[-1])
    return found


def metrics(target: Target) -> dict[str, float]:
    """The operator's metrics, by name with labels."""
    pod = target.kubectl(
        *("get", "pods", "-n", SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/component=operator"),
        *("-o", "jsonpath={.items[0].metadata.name}"),
    )
    path = f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods/{pod}:8080/proxy/metrics"
    lines = target.kubectl("get", "--raw", path).splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


@dataclass(frozen=True)
class Writes:
    """Writes of one kind to the API server, as the operator saw them."""

    count: int
    mean_ms: float


def writes(before: dict[str, float], after: dict[str, float]) -> dict[tuple[str, str], Writes]:
    """What was written between two looks, by verb and resource."""
    name = "cloister_api_write_seconds"
    pattern = re.compile(name + r'_count(\{resource="([^"]+)",verb="([^"]+)"\})')
    found = {}
    for metric in after:
        matched = pattern.fullmatch(metric)
        if not matched:
            continue
        total = f"{name}_sum{matched[1]}"
        count = int(after[metric] - before.get(metric, 0))
        seconds = after[total] - before.get(total, 0)
        if count:
            found[matched[3], matched[2]] = Writes(count, seconds / count * 1000)
    return found


def measure(target: Target, warm_count: int, cold_count: int) -> None:
    apply(target, *grants())
    apply(target, environment("bench-warm", POOL), environment("bench-cold", 0))
    target.kubectl(
        *("wait", "environment/bench-warm", "environment/bench-cold", "-n", SANDBOX_NAMESPACE),
        *("--for=condition=PoolReady", "--timeout=180s"),
    )
    before = metrics(target)
    warm = run_worker(target, worker("warm", "bench-warm", warm_count))
    after = metrics(target)
    made = writes(before, after)
    session, claim = made["create", "sessions"], made["patch", "pods"]
    status = made["patch", "sessions/status"]
    started = 'cloister_claim_seconds_count{start="warm"}'
    warm_starts = after[started] - before.get(started, 0)
    # A pod is patched twice, when it becomes warm and when it is claimed; the first belongs to
    # the refill, as do the pods and Secrets made.
    in_path = session.count + claim.count - made["create", "pods"].count + status.count
    api_mean = session.mean_ms + claim.mean_ms + status.mean_ms
    cold = run_worker(target, worker("cold", "bench-cold", cold_count))
    rss = metrics(target)["process_resident_memory_bytes"] / 1e6
    bare = run_worker(target, worker("bare", "", cold_count))
    without = run_worker(target, worker("bare", "", cold_count, mounts=False))
    alone = floor(target)
    total = sum(each.count for each in made.values())
    figures = {
        "warm_claims": len(warm),
        "warm_p50_ms": round(percentile(warm, 0.5), 1),
        "warm_p99_ms": round(percentile(warm, 0.99), 1),
        "warm_mean_ms": round(statistics.mean(warm), 1),
        "api_mean_ms": round(api_mean, 1),
        "api_ratio": round(statistics.mean(warm) / api_mean, 2),
        "floor": alone,
        "floor_ratio": round(percentile(warm, 0.5) / alone["p50_ms"], 2),
        "cold_starts": len(cold),
        "cold_ms": round(percentile(cold, 0.5)),
        "cold_p99_ms": round(percentile(cold, 0.99)),
        "bare_pod_ms": round(percentile(bare, 0.5)),
        "bare_pod_without_volumes_ms": round(percentile(without, 0.5)),
        "cold_ratio": round(percentile(cold, 0.5) / percentile(bare, 0.5), 2),
        "warm_hit_ratio": round(warm_starts / session.count, 3),
        "writes_per_claim": round(in_path / session.count, 2),
        "writes_per_claim_with_refill": round(total / session.count, 2),
        "writes": {f"{verb} {resource}": asdict(each) for (verb, resource), each in made.items()},
        "operator_rss_mb": round(rss, 1),
    }
    path = save("claims", figures)
    table(
        "Claims, by a worker in the cluster",
        [
            ("warm claim p50 / p99", f"{figures['warm_p50_ms']} / {figures['warm_p99_ms']} ms"),
            ("warm claim, mean", f"{figures['warm_mean_ms']} ms"),
            ("its three API writes, mean", f"{figures['api_mean_ms']} ms"),
            ("ratio of the means", f"{figures['api_ratio']}"),
            (
                "the same writes with no operator, p50 / p99",
                f"{alone['p50_ms']} / {alone['p99_ms']} ms",
            ),
            ("ratio of the medians", f"{figures['floor_ratio']}"),
            (
                "the two of them that the caller waits for, p50 / p99",
                f"{alone['waited_p50_ms']} / {alone['waited_p99_ms']} ms",
            ),
            ("cold, to the first answer p50", f"{figures['cold_ms']} ms"),
            ("cold, to the first answer p99", f"{figures['cold_p99_ms']} ms"),
            ("a bare pod of the same image and volumes, p50", f"{figures['bare_pod_ms']} ms"),
            ("the same without volumes", f"{figures['bare_pod_without_volumes_ms']} ms"),
            ("cold, ratio of the medians", f"{figures['cold_ratio']}"),
            ("claims that found a warm pod", f"{figures['warm_hit_ratio']:.1%}"),
            ("API writes per claim", f"{figures['writes_per_claim']}"),
            ("with the pool's refill", f"{figures['writes_per_claim_with_refill']}"),
            ("operator, resident", f"{figures['operator_rss_mb']} MB"),
        ],
    )
    print(f"\nwritten to {path.relative_to(ROOT)}")


def clean_up(target: Target) -> None:
    for kind in ("warm", "cold"):
        target.kubectl(
            "delete", "environment", f"bench-{kind}", "-n", SANDBOX_NAMESPACE, "--ignore-not-found"
        )
    target.kubectl(
        *("delete", "rolebinding", NAMESPACE, f"{NAMESPACE}-view", "-n", SANDBOX_NAMESPACE),
        "--ignore-not-found",
    )
    target.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")


def main(arguments: list[str]) -> int:
    counts = [int(each) for each in arguments] or [WARM, COLD]
    was_running = targets.bundled_runs()
    try:
        target = targets.bundled()
        # One operator: its metrics are all of them, and its calls are never forwarded.
        deploy(target, {"sandbox.workerNamespaces[0]": NAMESPACE, "operator.replicas": "1"})
        try:
            measure(target, counts[0], counts[1] if len(counts) > 1 else COLD)
        finally:
            clean_up(target)
    except TargetError as error:
        print(f"bench-claims: {error}", file=sys.stderr)
        return 1
    finally:
        if not was_running:
            targets.devcluster("down")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
