"""Run the end-to-end tests on the bundled cluster.

The cluster is started if it is down, and then stopped again afterwards; one that was running is
left running. Tests that disturb the whole installation run after the others, alone; then those of
the operator under faults, which bring an API server of their own. With --outages instead: parts of
the cluster are killed under load.
"""

import subprocess
import sys

import target as targets
from deploy import deploy
from redteam import EGRESS
from target import ROOT, TargetError

PARALLEL = "4"


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] == "--":
        arguments = arguments[1:]
    outages = arguments[:1] == ["--outages"]
    if outages:
        arguments = arguments[1:]
    was_running = targets.bundled_runs()
    try:
        target = targets.bundled()
        deploy(target, EGRESS)
        pytest = [sys.executable, "-m", "pytest", *arguments, "tests/e2e"]
        shared = [*pytest, "-m", "e2e and not disruptive", "-n", PARALLEL, "--dist", "loadscope"]
        alone = [*pytest, "-m", "e2e and disruptive and not outage"]
        parts = [*pytest, "-m", "e2e and outage", "-s"]
        faults = [*pytest[:-1], "tests/faults_operator", "-n", "2"]
        codes = [
            subprocess.run(command, cwd=ROOT, env=target.env, check=False).returncode
            for command in ((parts,) if outages else (shared, alone, faults))
        ]
    except TargetError as error:
        print(f"e2e: {error}", file=sys.stderr)
        return 1
    finally:
        if not was_running:
            targets.devcluster("down")
    nothing_selected = 5  # pytest's exit code when -k leaves no test in one of the runs
    wrong = [code for code in codes if code not in (0, nothing_selected)]
    return wrong[0] if wrong else (0 if 0 in codes else nothing_selected)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
