"""Claims beside many pods, on the bundled cluster with nodes that kwok pretends.

Fills 100 Environments to 10,000 pods of which 2,000 are claimed; then claims one at a time, a
burst, arrivals by a Poisson process that wait for nobody, the same while pods are deleted and
recipes change, a killed operator, and a restarted API server, after which everything is listed
anew. At the end the floor: the same writes with nobody else about. What is real and what is
pretended: bench/scale_cluster.py. Prints the figures and writes bench/results/scale.json.

    make bench-scale [PODS=10000] [ENVIRONMENTS=100] [CLAIMED=2000] [BURST=300]
                     [RATE=50] [STEADY=300] [CHURN=600] [CHURN_RATE=10]
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [
    str(ROOT / each) for each in (".", "scripts", "devcluster/src", "operator/src", "proto")
]

from bench.bare_writes import floor  # noqa: E402 - found through the path above
from bench.bench_claims import grants  # noqa: E402
from bench.results import save, table  # noqa: E402
from bench.scale_cluster import LABEL, Node, Pretended, apply, environment, pretended, tear_down  # noqa: E402
from bench.scale_readings import Claims, Part, Reading, rss  # noqa: E402

import target as targets  # noqa: E402
from deploy import deploy  # noqa: E402
from target import SANDBOX_NAMESPACE, SYSTEM_NAMESPACE, Target, TargetError  # noqa: E402

WORKERS = "cloister-bench"
ONE = 50
"""Claims one at a time, at each size of the cluster."""
HOLD = 5.0
"""Seconds that a session of the arrivals lives."""


@dataclass(frozen=True)
class Size:
    """How much of everything; from the variables of the same name."""

    pods: int = 10_000
    environments: int = 100
    claimed: int = 2000
    burst: int = 300
    rate: float = 50.0
    steady: float = 300.0
    churn: float = 600.0
    churn_rate: float = 10.0

    @classmethod
    def given(cls, environ: Mapping[str, str]) -> "Size":
        """Read the variables; raises ValueError."""
        return cls(
            **{
                name: type(default)(environ[name.upper()])
                for name, default in vars(cls()).items()
                if environ.get(name.upper())
            }
        )

    @property
    def pool(self) -> int:
        """Warm pods of each Environment."""
        return (self.pods - self.claimed) // self.environments

    @property
    def names(self) -> list[str]:
        """The Environments."""
        return [f"scale-{each:03}" for each in range(self.environments)]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


@dataclass
class Run:
    """One run against one cluster."""

    target: Target
    size: Size
    node: Node
    figures: dict[str, Any] = field(default_factory=dict)
    stand_ins: Pretended | None = None
    _load: "subprocess.Popen[str] | None" = None

    def metrics(self) -> Reading:
        """The operator's metrics as they are now."""
        pod = self.operator_pod()
        path = f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods/{pod['name']}:8080/proxy/metrics"
        lines = self.target.kubectl("get", "--raw", path).splitlines()
        parts = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return Reading(time.monotonic(), {name: float(value) for name, value in parts})

    def operator_pod(self) -> dict[str, str]:
        """Name and address of the operator that leads."""
        words = ("get", "pods", "-n", SYSTEM_NAMESPACE, "-o", "json", "-l")
        found = self.target.kubectl(*words, "app.kubernetes.io/component=operator")
        pod = json.loads(found)["items"][0]
        return {"name": pod["metadata"]["name"], "ip": pod["status"].get("podIP", "")}

    def environments(self, size: int) -> None:
        """Bring every pool to this size, and wait until it has it."""
        apply(self.target, *(environment(name, size) for name in self.size.names))
        self.wait_full(size)

    def wait_full(self, size: int, seconds: float = 3600) -> float:
        """Wait until every pool is full and nothing is starting; returns how long it took."""
        began, told = time.monotonic(), 0.0
        while True:
            if self.stand_ins:
                self.stand_ins.check()
            ready = [pool.get("ready", 0) for pool in self.pools()]
            if len(ready) == self.size.environments and min(ready) >= size:
                return time.monotonic() - began
            now = time.monotonic()
            if now > began + seconds:
                raise TargetError(f"only {sum(ready)} pods were warm after {seconds:.0f} s")
            if now > told + 20:
                told = now
                say(f"{sum(ready)} pods are warm")
            time.sleep(1)

    def pools(self) -> list[dict[str, int]]:
        """status.pool of every Environment."""
        words = ("get", "environments", "-n", SANDBOX_NAMESPACE, "-l", f"{LABEL}=scale")
        found = json.loads(self.target.kubectl(*words, "-o", "json"))["items"]
        return [(each.get("status") or {}).get("pool") or {} for each in found]

    def connect(self) -> None:
        """Start the callers, in the cluster's network."""
        token = self.target.kubectl(
            "create", "token", "default", "-n", WORKERS, "--duration=6h"
        ).strip()
        words = ("get", "configmap", "cloister-client-config", "-n", SYSTEM_NAMESPACE, "-o", "json")
        found = json.loads(self.target.kubectl(*words))["data"]
        where = {
            "address": found["sessionsAddress"],
            "ca": found["ca.crt"],
            "token": token,
            "namespace": SANDBOX_NAMESPACE,
            "environments": self.size.names,
        }
        self._load = self.node.start(
            sys.executable,
            str(ROOT / "bench" / "scale_load.py"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._tell(where)

    def close(self) -> None:
        """End the callers."""
        if self._load:
            self._load.terminate()
            self._load.wait()

    def _tell(self, line: Mapping[str, Any]) -> None:
        pipe = self._load.stdin if self._load else None
        if pipe is None:
            raise TargetError("the callers are not there")
        pipe.write(json.dumps(line) + "\n")
        pipe.flush()

    def _answer(self) -> Claims:
        pipe = self._load.stdout if self._load else None
        line = pipe.readline() if pipe else ""
        if not line:
            raise TargetError("the callers ended")
        return [(each[0], each[1], each[2]) for each in json.loads(line)]

    def part(self, name: str, meanwhile: Callable[[], None] | None = None, **what: Any) -> Part:
        """Let the callers do something; `meanwhile` runs beside them."""
        say(f"{name}: {json.dumps(what)}")
        before = self.metrics()
        self._tell(what)
        thread = threading.Thread(target=meanwhile) if meanwhile else None
        if thread:
            thread.start()
        claims = self._answer()
        if thread:
            thread.join()
        made = Part(claims, before, self.metrics())
        shown = made.figures()
        self.figures[name] = shown
        say(f"{name}: p50 {shown['p50_ms']}, p99 {shown['p99_ms']} ms, {shown['failed']} failed")
        for error in shown["errors"]:
            say(f"  {error}")
        return made

    def served(self, disturb: Callable[[], object]) -> float:
        """Seconds from a disturbance until a claim has succeeded."""
        began = time.monotonic()
        disturb()
        self._tell({"do": "serve"})
        self._answer()
        return round(time.monotonic() - began, 1)

    def churn(self) -> None:
        """Delete pods and change recipes for as long as the arrivals last."""
        chance = random.Random(2)
        end, step = time.monotonic() + self.size.churn, 0
        warm = ("-l", "cloister.dev/state=warm", "-o", "name", "--chunk-size=500")
        while time.monotonic() + 5 < end:
            step += 1
            name = chance.choice(self.size.names)
            if step % 6:
                where = ("-n", SANDBOX_NAMESPACE)
                pods = self.target.kubectl(
                    *("get", "pods", *where, *warm[2:], "-l"),
                    f"cloister.dev/state=warm,cloister.dev/environment={name}",
                ).split()
                if pods:
                    self.target.kubectl("delete", chance.choice(pods), *where, "--wait=false")
            else:
                apply(self.target, environment(name, self.size.pool, str(step)))
            time.sleep(5)


def measure(run: Run) -> None:
    size, figures = run.size, run.figures
    time.sleep(10)
    figures["rss_idle_mb"] = rss(run.metrics())
    run.connect()
    few = max(1, 100 // size.environments)
    run.environments(few)
    run.part("warm_up", do="one", count=5)
    run.wait_full(few)
    small = run.part("one_at_100", do="one", count=ONE)
    say(f"filling to {size.pool * size.environments} warm pods")
    before, began = run.metrics(), time.monotonic()
    run.environments(size.pool)
    seconds, after = time.monotonic() - began, run.metrics()
    made = (size.pool - few) * size.environments
    spent = after.value("process_cpu_seconds_total") - before.value("process_cpu_seconds_total")
    figures["fill"] = {
        "pods": made,
        "seconds": round(seconds, 1),
        "pods_per_s": round(made / seconds, 1),
        "operator_cores": round(spent / seconds, 3),
    }
    run.part("claimed", do="keep", count=size.claimed, at_once=16)
    run.wait_full(size.pool)
    time.sleep(10)
    figures["rss_10000_mb"] = rss(run.metrics())
    large = run.part("one_at_10000", do="one", count=ONE)
    run.part("burst", do="burst", count=size.burst)
    run.wait_full(size.pool)
    steady = run.part("steady", do="poisson", rate=size.rate, seconds=size.steady, hold=HOLD)
    figures["steady"]["windows"] = steady.windows()
    run.wait_full(size.pool)
    if size.churn:
        churn = run.part(
            "churn",
            run.churn,
            do="poisson",
            rate=size.churn_rate,
            seconds=size.churn,
            hold=HOLD,
        )
        figures["churn"]["windows"] = churn.windows()
        # The pods that churn still asks for are not what a restart costs.
        run.wait_full(size.pool)
        time.sleep(10)
    figures["restart_s"] = run.served(run.node.kill_operator)
    say(f"restart: serving after {figures['restart_s']} s")
    figures["relist_s"] = run.served(lambda: targets.devcluster("restart", "apiserver", quiet=True))
    say(f"API server restarted: serving after {figures['relist_s']} s")
    figures["rss_after_relist_mb"] = rss(run.metrics())
    figures["floor"] = floor(run.target)
    figures |= {
        "sustained_p99_ms": steady.ms(0.99),
        "sustained_rate": size.rate,
        "warm_hit_ratio": round(steady.warm_ratio, 4),
        "cost_ratio_10000_to_100": round(large.cpu_ms / small.cpu_ms, 2),
        "latency_ratio_10000_to_100": round(large.ms(0.5) / small.ms(0.5), 2),
    }


def report(figures: Mapping[str, Any], size: Size) -> None:
    rows: list[tuple[str, str]] = [
        ("fill", f"{figures['fill']['pods_per_s']} pods/s"),
        ("resident, idle", f"{figures['rss_idle_mb']} MB"),
        (f"resident, {size.pods} pods", f"{figures['rss_10000_mb']} MB"),
    ]
    for name in ("one_at_100", "one_at_10000", "burst", "steady", "churn"):
        if name in figures:
            part = figures[name]
            times = " / ".join(str(part[f"{each}_ms"]) for each in ("p50", "p90", "p99"))
            cpu = part["operator_cpu_ms_per_claim"]
            text = f"{times} ms, warm {part['warm_ratio']}, {cpu} ms of processor per claim"
            rows.append((name.replace("_", " "), text))
    rows += [
        ("floor: the three writes", f"{figures['floor']['p50_ms']} ms"),
        ("operator killed, until it serves", f"{figures['restart_s']} s"),
        ("API server restarted, until served", f"{figures['relist_s']} s"),
        ("cost of a claim, against 100 pods", f"{figures['cost_ratio_10000_to_100']}"),
    ]
    table("Claims beside many pods", rows)


def main(environ: Mapping[str, str], _: Sequence[str]) -> int:
    was_running = targets.bundled_runs()
    try:
        size = Size.given(environ)
        target = targets.bundled()
        targets.devcluster("build", "--only", "kwok")
        apply(target, *grants()[:1])
        deploy(
            target,
            {
                # What one operator costs, and how long one takes that has nobody beside it.
                "operator.replicas": "1",
                "sandbox.workerNamespaces[0]": WORKERS,
                "sandbox.defaults.cpu": "100m",
                "sandbox.defaults.memory": "128Mi",
                "sandbox.defaults.disk": "64Mi",
            },
        )
        apply(target, *grants())
        # Fake pods have no network to be closed, and it would look at each of their changes.
        targets.devcluster("stop", "router", quiet=True)
        run = Run(target, size, Node())
        try:
            with pretended(target, run.node) as stand_ins:
                run.stand_ins = stand_ins
                try:
                    measure(run)
                finally:
                    run.close()
                said = stand_ins.count()
                run.figures["claimed_twice"] = said["refused"]
                if said["refused"]:
                    raise TargetError(f"{said['refused']} pods were given to two sessions")
        finally:
            save("scale", run.figures | {"size": vars(size)})
            tear_down(target)
            targets.devcluster("start", "router", quiet=True)
        report(run.figures, size)
    except (TargetError, ValueError) as error:
        print(f"bench-scale: {error}", file=sys.stderr)
        return 1
    finally:
        if not was_running:
            targets.devcluster("down")
    print("\nwritten to bench/results/scale.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ, sys.argv[1:]))
