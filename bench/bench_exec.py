"""The exec server, measured next to its floors in one run.

The floors are a bare grpc.aio server of the same message shapes, xargs, the reference toolset and
`kubectl exec`. Everything with mutual TLS; each figure's floor is measured in turn with it, so that
whatever slows the machine down slows both. Prints the figures and writes bench/results/exec.json.

    python bench/bench_exec.py [--local]

--local: only what needs no cluster.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "scripts"), str(ROOT / "devcluster" / "src")]

from bench import cluster_part, local_part  # noqa: E402
from bench.exec_report import report  # noqa: E402
from bench.results import save  # noqa: E402
from bench.sandbox_client import Sizes  # noqa: E402

from target import TargetError  # noqa: E402 - found through the path above


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--local", action="store_true", help="only what needs no cluster")
    arguments = parser.parse_args()
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", file=sys.stderr, flush=True)

    # Above 1 the machine is busy with something else, and the figures are not worth quoting.
    figures: dict[str, object] = {"load_at_start": round(os.getloadavg()[0], 2)}
    figures.update(local_part.measure(local_part.Sizes(), say))
    failed = False
    if not arguments.local:
        try:
            figures.update(cluster_part.measure(Sizes(), say))
        except TargetError as error:
            print(f"bench-exec: {error}", file=sys.stderr)
            failed = True
    report(figures)
    path = save("exec", figures)
    print(f"\nwritten to {path.relative_to(ROOT)} after {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
