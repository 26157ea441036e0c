"""Attack Cloister from inside its sandboxes, on the bundled cluster, before a fake internet.

The cluster is started if it is down, and then stopped again afterwards. The suite runs in the
node's network namespace. The last line says how many attacks were tried, and how many succeeded;
the exit code is that of pytest: other than 0 when one succeeded, or a control failed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import target as targets
from deploy import deploy
from target import ROOT, TargetError

sys.path.insert(0, str(ROOT / "devcluster" / "src"))

from cloister_devcluster.node import holder
from cloister_devcluster.places import here

NAME_SERVER = "45.83.64.53"
"""The fake internet's: see tests/support/fake_internet_names.py."""
ROOTISH_NAMESPACE = "cloister-rootish"
EGRESS = {"egress.gateway.nameservers[0]": NAME_SERVER}
"""What the chart must be told for the gateways to ask the fake internet."""
VALUES = {
    **EGRESS,
    # The node's addresses towards the fake internet, which Kubernetes does not know to be its own.
    "egress.extraRanges[0]": "45.83.64.0/30",
    "sandboxNamespaces[1].name": ROOTISH_NAMESPACE,
    "sandboxNamespaces[1].create": "true",
    "sandboxNamespaces[1].podSecurity": "baseline",
    # What the scheduler keeps free for Cloister itself: a sandbox of each kind is there until the
    # end, and a developer's machine may have two processors.
    "resources.requests.cpu": "10m",
    **{
        f"egress.gateway.resources.{each}.requests.cpu": "10m"
        for each in ("front", "names", "sni", "byName", "agent")
    },
}


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] == "--":
        arguments = arguments[1:]
    was_running = targets.bundled_runs()
    with tempfile.TemporaryDirectory() as folder:
        count = Path(folder) / "count"
        try:
            target = targets.bundled()
            deploy(target, VALUES)
            node = holder(here())
            if node is None:
                raise TargetError("the bundled cluster has no node")
            command = ["nsenter", f"--target={node}", "--net", "--", sys.executable, "-m", "pytest"]
            command += [*arguments, "tests/redteam", "-m", "redteam"]
            env = {**os.environ, **target.env, "CLOISTER_REDTEAM_COUNT": str(count)}
            code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
        except TargetError as error:
            print(f"redteam: {error}", file=sys.stderr)
            return 1
        finally:
            if not was_running:
                targets.devcluster("down")
        print(count.read_text() if count.exists() else "attacks: 0 tried, 0 succeeded", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
