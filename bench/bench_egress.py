"""The egress gateway beside a direct way, in one run, on loopback: namespaces instead of a cluster.

Both ways lead over the same two cables. What is asked is asked in turns, so that whatever slows the
machine down slows both. Throughput is told for each second of CPU time that the gateway's processes
used, which other load does not change. Prints the figures and writes bench/results/egress.json.

    python bench/bench_egress.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), *(str(ROOT / each) for each in ("devcluster/src", "tests", "proto"))]

from bench.bench_egress_ends import HOSTS  # noqa: E402
from bench.results import RESULTS, percentile, save, table  # noqa: E402

from support.gateway_world import World, world  # noqa: E402

SOURCE = "10.90.0.11"
ENDS = Path(__file__).with_name("bench_egress_ends.py")
UNBOUND = {
    "CLOISTER_GATEWAY_MAX_CONNECTIONS_PER_SOURCE": "100000",
    "CLOISTER_GATEWAY_CONNECTIONS_PER_10S": "1000000",
    "CLOISTER_GATEWAY_CONNECTIONS_PER_S": "1000000",
}
Figures = dict[str, Any]


class Bench:
    """One world, and what is measured in it."""

    def __init__(self, here: World, server: Any) -> None:
        self._here = here
        self._server = server

    def _end(self, *arguments: object) -> Any:
        """What a client says."""
        done = subprocess.run(
            self._command(*arguments), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)

    def _command(self, *arguments: object) -> list[str]:
        space = self._here.client.space
        words = [str(each) for each in arguments]
        return ["nsenter", f"--net={space.path}", sys.executable, str(ENDS), *words]

    def _spent(self, before: dict[str, float]) -> dict[str, float]:
        now = self._here.pod.cpu_seconds()
        return {part: now[part] - before[part] for part in now}

    def latency(self, count: int) -> Figures:
        """Added milliseconds, of whole requests and of those on an open tunnel."""
        self._end("latency", count // 10)
        found = self._end("latency", count)
        p50 = {name: statistics.median(values) for name, values in found.items()}
        return {
            "added_ms_p50": round(p50["new"] - p50["new_direct"], 3),
            "added_ms_p95": round(
                percentile(found["new"], 0.95) - percentile(found["new_direct"], 0.95), 3
            ),
            "new_connection_ms_p50": round(p50["new"], 3),
            "new_connection_direct_ms_p50": round(p50["new_direct"], 3),
            "added_open_ms_p50": round(p50["open"] - p50["open_direct"], 3),
            "by_name_added_ms_p50": round(p50["new_by_name"] - p50["new_direct"], 3),
            "by_name_added_open_ms_p50": round(p50["open_by_name"] - p50["open_direct"], 3),
        }

    def bulk(self, seconds: float, rounds: int) -> Figures:
        """Gbit/s for each core that the gateway uses, and what both ways reach here."""
        spent: dict[str, dict[str, float]] = {"gateway": {}, "by_name": {}, "direct": {}}
        gbits = dict.fromkeys(spent, 0.0)
        rates: dict[str, list[float]] = {way: [] for way in spent}
        for _ in range(rounds):
            for way, used in spent.items():
                before = self._here.pod.cpu_seconds()
                done = self._end("bulk", way, seconds)
                gbits[way] += done["bytes"] * 8 / 1e9
                rates[way].append(done["bytes"] * 8 / done["seconds"] / 1e9)
                for part, more in self._spent(before).items():
                    used[part] = used.get(part, 0.0) + more
        found: Figures = {"gbit_direct": round(statistics.median(rates["direct"]), 3)}
        for way, prefix in (("gateway", ""), ("by_name", "by_name_")):
            parts = {part: round(used / gbits[way], 3) for part, used in spent[way].items()}
            found[f"{prefix}gbit_per_core"] = round(gbits[way] / sum(spent[way].values()), 3)
            found[f"{prefix}cpu_seconds_per_gbit"] = parts
            found[f"{prefix}gbit"] = round(statistics.median(rates[way]), 3)
        return found

    def connections(self, seconds: float) -> Figures:
        """Connections a second, here with both ends on the same cores, and per core of CPU time."""
        before = self._here.pod.cpu_seconds()
        through = self._end("connections", "gateway", seconds, 32)
        spent = self._spent(before)
        by_name = self._end("connections", "by_name", seconds, 32)
        direct = self._end("connections", "direct", seconds, 32)
        return {
            "by_name_connections_per_s": round(by_name["count"] / by_name["seconds"], 1),
            "connections_per_s": round(through["count"] / through["seconds"], 1),
            "connections_direct_per_s": round(direct["count"] / direct["seconds"], 1),
            "connections_per_core_s": round(through["count"] / sum(spent.values()), 1),
            "cpu_ms_per_connection": {
                part: round(used * 1000 / through["count"], 3) for part, used in spent.items()
            },
        }

    def memory(self, count: int, *, by_name: bool = False) -> Figures:
        """Megabytes that open tunnels take."""
        before = self._here.pod.memory_kb()
        with subprocess.Popen(
            self._command("hold", "by_name" if by_name else "gateway", count),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            if not holder.stdout.readline():
                raise RuntimeError("the tunnels could not be opened")
            after = self._here.pod.memory_kb()
        grown = {part: (after[part] - before[part]) / 1024 for part in after}
        if by_name:
            return {"by_name_memory_per_1000_mb": round(sum(grown.values()) * 1000 / count, 1)}
        return {
            "memory_per_1000_tunnels_mb": round(sum(grown.values()) * 1000 / count, 1),
            "memory_of_parts_mb": {part: round(kb / 1024, 1) for part, kb in before.items()},
            "memory_of_1000_tunnels_by_part_mb": {
                part: round(mb * 1000 / count, 1) for part, mb in grown.items()
            },
        }


def measure(scale: float) -> Figures:
    """All figures; `scale` shortens or lengthens the run."""
    settings = {**UNBOUND, "CLOISTER_GATEWAY_THREADS": "1"}
    figures: Figures = {"load_at_start": round(os.getloadavg()[0], 2)}
    with (
        tempfile.TemporaryDirectory(prefix="cloister-bench-") as folder,
        world(Path(folder), settings, ports=()) as here,
    ):
        here.space.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        here.client.space.run("ip", "route", "add", "default", "via", "10.90.0.1")
        here.internet.names.update({host: [address] for address, host in HOSTS.items()})
        here.operator.apply({SOURCE: "p"}, {"p": tuple(HOSTS.values())})
        command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("nsenter", f"--net={here.internet.space.path}", sys.executable, str(ENDS)),
            *("server", str(Path(folder) / "server.pem")),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            bench = Bench(here, server)
            try:
                figures.update(bench.latency(int(500 * scale)))
                figures.update(bench.bulk(4 * scale, 3))
                figures.update(bench.connections(8 * scale))
                figures.update(bench.memory(1000))
                figures.update(bench.memory(1000, by_name=True))
            finally:
                server.kill()
    return figures


def main() -> int:
    """Measure, print, save; keys that another part of the benchmark wrote stay."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the time it takes")
    arguments = parser.parse_args()
    began = time.monotonic()
    figures = measure(arguments.scale)
    table("egress gateway", [(name, str(value)) for name, value in figures.items()])
    written = RESULTS / "egress.json"
    kept = json.loads(written.read_text()) if written.exists() else {}
    path = save("egress", {**kept, **figures})
    print(f"\nwritten to {path.relative_to(ROOT)} after {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
