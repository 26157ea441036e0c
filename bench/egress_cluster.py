"""How soon a granted session's first request gets through the egress gateway, on a real cluster.

The bundled cluster is started if it is down, and then stopped again. The sites are a fake
internet's. From the answer to Create on, a sandbox is told to fetch a page: the figure is all that
passes until it has it, the call to the exec server and the start of curl among it, and is told
beside the same for a command that fetches nothing. Adds to bench/results/egress.json.

    python bench/egress_cluster.py
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), *(str(ROOT / each) for each in ("devcluster/src", "tests", "scripts"))]
sys.path += [str(ROOT / "client" / "src"), str(ROOT / "proto")]

from bench.results import RESULTS, percentile, save, table  # noqa: E402

import cloister  # noqa: E402
import redteam as suite  # noqa: E402
import target as targets  # noqa: E402
from cloister_devcluster import places  # noqa: E402
from cloister_devcluster.node import holder  # noqa: E402
from deploy import deploy  # noqa: E402
from support.cluster import (  # noqa: E402
    SANDBOXES,
    apply,
    environment,
    kubectl,
    wait_condition,
    wait_for,
)
from support.fake_internet import fake_internet  # noqa: E402
from support.fake_internet_names import ALLOWED  # noqa: E402

COUNT = 30
NAME = "bench-egress"
FETCH = f"curl -sS -o /dev/null -w '%{{http_code}}' http://{ALLOWED}/"
IDLE = "curl --version > /dev/null; echo 200"


def one(client: cloister.Client, command: str) -> float:
    """Milliseconds from a granted session to the answer of its first command."""
    wait_for("a warm pod", _warm)
    with client.create_session(NAME) as session:
        granted = time.perf_counter()
        said = session.bash(command).text
        took = (time.perf_counter() - granted) * 1000
    if said != "200":
        raise RuntimeError(f"a granted session's first request failed: {said}")
    return took


def _warm() -> bool | None:
    counts = wait_condition("environment", NAME, "Ready")["status"]["pool"]
    return counts.get("ready", 0) > 0 or None


def on_node() -> None:
    """Measure, on the node, where pods are reached by their addresses."""
    node = holder(places.here())
    if node is None:
        raise RuntimeError("the bundled cluster has no node")
    with tempfile.TemporaryDirectory() as folder, fake_internet(node, Path(folder) / "world"):
        apply(environment(NAME, networking={"allowedHosts": [ALLOWED]}, pool={"size": 2}))
        try:
            with cloister.Client(namespace=SANDBOXES, direct=True) as client:
                one(client, FETCH)
                # In turns, so that what slows the machine down slows both.
                pairs = [(one(client, FETCH), one(client, IDLE)) for _ in range(COUNT)]
        finally:
            kubectl("delete", "environment", NAME, "-n", SANDBOXES, "--wait=false")
    fetched, idle = ([pair[at] for pair in pairs] for at in (0, 1))
    figures = {
        "grant_to_first_request_ms": round(percentile(fetched, 0.5), 1),
        "grant_to_first_request_p95_ms": round(percentile(fetched, 0.95), 1),
        "grant_to_first_command_ms": round(percentile(idle, 0.5), 1),
    }
    table("granted sessions", [(name, str(value)) for name, value in figures.items()])
    written = RESULTS / "egress.json"
    kept = json.loads(written.read_text()) if written.exists() else {}
    save("egress", {**kept, **figures})


def main() -> int:
    if sys.argv[1:] == ["--on-node"]:
        on_node()
        return 0
    was_running = targets.bundled_runs()
    try:
        target = targets.bundled()
        deploy(target, suite.VALUES)
        command = ["nsenter", f"--target={holder(places.here())}", "--net", "--", sys.executable]
        done = subprocess.run(
            [*command, __file__, "--on-node"], env={**os.environ, **target.env}, check=False
        )
        return done.returncode
    except targets.TargetError as error:
        print(f"bench-egress: {error}", file=sys.stderr)
        return 1
    finally:
        if not was_running:
            targets.devcluster("down")


if __name__ == "__main__":
    sys.exit(main())
