"""The tables of bench_exec: each figure with its floor, the ratio of the two, and the target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Figures = Mapping[str, object]


@dataclass(frozen=True)
class Row:
    """A line of a table; `ours`, `floor` and `ratio` are keys of the figures."""

    name: str
    ours: str
    floor: str = ""
    ratio: str = ""
    target: str = ""


def _pair(name: str, key: str, unit: str, ratio: str, target: str = "") -> Row:
    return Row(name, f"{key}_{unit}", f"{key}_floor_{unit}", f"{key}_{ratio}", target)


def _control(name: str, key: str, target: str = "") -> Row:
    return Row(name, f"{key}_p99_ms", f"{key}_idle_p99_ms", f"{key}_ratio_p99", target)


CALLS = [
    Row("bash `:` p50, ms", "bash_p50_ms", "bash_floor_p50_ms", "bash_ratio_p50", "<= 1.5"),
    Row("bash `:` p99, ms", "bash_p99_ms", "bash_floor_p99_ms", "bash_ratio_p99", "<= 2"),
    _pair("bash `echo x` p50, ms", "bash_print", "p50_ms", "ratio_p50"),
    Row("read 4 KiB p50, ms", "read4k_p50_ms", "read4k_floor_p50_ms", "read4k_ratio_p50", "<= 1.3"),
    Row("read 4 KiB p99, ms", "read4k_p99_ms", "read4k_floor_p99_ms", "read4k_ratio_p99"),
    _pair("program's output, MB/s", "stream", "mb_s", "ratio", ">= 0.8"),
    _pair("upload, MB/s", "upload", "mb_s", "ratio", ">= 0.8"),
    _pair("download, MB/s", "download", "mb_s", "ratio", ">= 0.8"),
    Row("upload to disk, MB/s", "upload_disk_mb_s", "write_disk_mb_s", "upload_disk_ratio"),
    Row("100 commands at once, ms", "burst100_ms", "burst100_xargs_ms", "burst100_ratio", "<= 1.5"),
    Row("ready, ms", "ready_ms", target="<= 150"),
    Row("resident when idle, MB", "rss_idle_mb", target="<= 45"),
    Row("resident afterwards, MB", "rss_after_mb", target="<= 80"),
]
CONTROL = [
    _control("Info p99, ms", "control_under_load_info", "< 3"),
    _control("bash `:` p99, ms", "control_under_load_bash", "< 3"),
    _control("bare server: Info p99, ms", "control_floor_info"),
    _control("bare server: call p99, ms", "control_floor_bash"),
]
REFERENCE = [
    Row("bash `:` p50, ms", "bash_p50_ms", "reference_bash_p50_ms"),
    Row("bash `:` p99, ms", "bash_p99_ms", "reference_bash_p99_ms"),
    Row("read 4 KiB p50, ms", "read4k_p50_ms", "reference_read4k_p50_ms"),
    Row("100 at once, ms", "burst100_ms", "reference_burst100_ms"),
]
KUBECTL = [Row("bash `:` p50, ms", "runc_bash_p50_ms", "kubectl_exec_p50_ms")]


def _print(title: str, heads: Sequence[str], rows: Sequence[Row], figures: Figures) -> None:
    def line(name: str, *cells: object) -> str:
        return "  " + name.ljust(28) + "".join(str(cell).rjust(12) for cell in cells)

    present = [row for row in rows if row.ours in figures]
    if present:
        print(f"\n{title}\n{line('', *heads)}")
    for row in present:
        cells = [figures.get(key, "") for key in (row.ours, row.floor, row.ratio)]
        print(line(row.name, *cells, row.target).rstrip())


def _of(prefix: str) -> list[Row]:
    """The same table of another place; the targets are for the local one."""
    return [
        Row(row.name, *(key and prefix + key for key in (row.ours, row.floor, row.ratio)))
        for row in CALLS
    ]


def report(figures: Figures) -> None:
    """Print what is there."""
    heads = ["ours", "floor", "ratio", "target"]
    _print("On loopback", heads, CALLS, figures)
    _print("Beside bulk transfers", ["busy", "idle", "ratio", "target"], CONTROL, figures)
    _print("Beside the reference toolset in process", ["ours", "reference"], REFERENCE, figures)
    _print("In a pod under runc", heads[:3], _of("runc_"), figures)
    _print("In a pod under gVisor", heads[:3], _of("gvisor_"), figures)
    _print("Beside kubectl exec", ["ours", "kubectl"], KUBECTL, figures)
