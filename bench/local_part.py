"""Everything that needs no cluster: both servers on loopback, one client, one after the other."""

import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.bulk import bulk, disk, pipe
from bench.burst import XARGS, burst
from bench.calls import SMALL_FILE, answers, small_calls
from bench.certificates import Authority
from bench.load import under_load
from bench.local_server import exec_server, floor_server, resident_mb
from bench.reference import reference


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    starts: int = 7
    calls: int = 3000
    warm_up: int = 300
    bulk_bytes: int = 256 * 1024 * 1024
    rounds: int = 5
    control_rounds: int = 4
    control_calls: int = 300
    reference_calls: int = 1000


def xargs() -> float:
    """Milliseconds of the hundred commands run here."""
    done = subprocess.run(["bash", "-c", XARGS], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1000


def starts(directory: Path, authority: Authority, count: int) -> list[float]:
    """Milliseconds from the start of an exec server to its first answer, one after the other."""
    found = []
    for number in range(count):
        own = directory / f"start{number}"
        with exec_server(own, own / "workspace", authority) as server:
            found.append(server.ready_ms)
    return found


def measure(sizes: Sizes, say: Callable[[str], None]) -> dict[str, float]:
    """The figures."""
    authority = Authority()
    # The server's own directory is in memory, as in a pod; the workspace is on the disk.
    with (
        tempfile.TemporaryDirectory(prefix="cloister-bench-", dir="/dev/shm") as memory,
        tempfile.TemporaryDirectory(prefix="cloister-bench-") as folder,
    ):
        directory, on_disk = Path(memory), Path(folder)
        say("starts")
        ready = starts(directory, authority, sizes.starts - 1)
        with exec_server(directory / "exec", on_disk / "workspace", authority) as server:
            figures = {
                "ready_ms": round(statistics.median([*ready, server.ready_ms]), 1),
                "rss_idle_mb": round(resident_mb(server.process.pid), 1),
            }
            worker = server.claim(authority)
            with worker.channel() as ours:
                answered = answers(ours, SMALL_FILE)
                with (
                    floor_server(directory / "floor", authority, answered) as (bare, bare_peer),
                    bare_peer.channel() as floor,
                ):
                    say("small calls")
                    figures.update(small_calls(ours, floor, sizes.calls, sizes.warm_up))
                    say("bulk")
                    memory_folder = str(directory / "exec" / "home")
                    figures.update(bulk(ours, floor, sizes.bulk_bytes, sizes.rounds, memory_folder))
                    figures.update(disk(ours, on_disk, sizes.bulk_bytes, sizes.rounds))
                    figures["pipe_mb_s"] = round(
                        statistics.median(pipe(sizes.bulk_bytes) for _ in range(sizes.rounds)), 1
                    )
                    say("control calls beside bulk transfers")
                    for name, peer, pid in (
                        ("control_under_load", worker, server.process.pid),
                        ("control_floor", bare_peer, bare.pid),
                    ):
                        figures.update(
                            under_load(name, peer, pid, sizes.control_rounds, sizes.control_calls)
                        )
            say("a hundred at once")
            figures.update(burst(worker, xargs, 2 * sizes.rounds))
            figures["rss_after_mb"] = round(resident_mb(server.process.pid), 1)
        say("the reference toolset")
        figures.update(reference(on_disk / "reference", sizes.reference_calls, sizes.rounds))
    return figures
