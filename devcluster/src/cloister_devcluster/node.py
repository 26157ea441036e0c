"""The node: a process that holds namespaces, and everything that runs in them.

Nothing is remembered between commands but what the kernel knows: the holder is found by its command
line, the node's processes by their PID namespace.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from .components import Config
from .errors import ClusterError
from .places import Places, cache

HOLDER = Path(__file__).with_name("holder.py")
_LINKS = Path("/sys/class/net")
SYSCTLS = (
    "fs/inotify/max_user_instances",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
"""Settings of the whole machine that the kubelet, or `raise_limits`, changes."""
CONTROLLERS = {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}
"""What the kubelet wants of cgroup v2."""
INOTIFY_INSTANCES = 8192
NO_IPV6 = "; ".join(
    (
        "add table bridge pods",
        "add chain bridge pods input { type filter hook input priority 0; }",
        "add chain bridge pods forward { type filter hook forward priority 0; }",
        "add rule bridge pods input ether type ip6 drop",
        "add rule bridge pods forward ether type ip6 drop",
    )
)
"""What closes the pods' bridge to IPv6.

Pods have no IPv6 addresses but the link-local ones that the kernel gives every interface. The
policy engine looks at IPv4 alone: over those, each pod would reach the node and all other pods.
"""


@dataclass(frozen=True)
class Process:
    """A process of the node, seen from the host."""

    pid: int
    parent: int
    argv: tuple[str, ...]
    memory: int
    """Bytes that are its own."""


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask until it is true; raises ClusterError that says `what` did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.05)


def holder(places: Places) -> int | None:
    """The host's PID of the process that holds the node, or None."""
    for pid in _pids():
        argv = _argv(pid)
        # `unshare` has the same words in its command line, but is not the first of its namespace.
        if str(HOLDER) in argv[:4] and str(places.base) in argv and _first(pid):
            return pid
    return None


def start(config: Config) -> int:
    """Make the namespaces and the link to the host; returns the holder's PID."""
    places = config.places
    with (places.logs / "node.log").open("a") as log:
        command = ["unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--mount-proc"]
        command += [sys.executable, "-I", "-S", str(HOLDER), str(places.base), "node1"]
        subprocess.Popen(
            [*command, str(places.base), str(cache())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    wait_until((places.run / "ready").exists, 10, "the node's namespaces")
    pid = holder(places)
    if pid is None:
        raise ClusterError(f"the node's first process ended, see {places.logs}/node.log")
    _link(config, pid)
    return pid


def _link(config: Config, pid: int) -> None:
    _ip("link", "add", config.link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _ip("address", "add", f"{config.host_ip}/24", "dev", config.link)
    _ip("link", "set", config.link, "up")
    for words in (
        "link set lo up",
        f"address add {config.node_ip}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {config.host_ip}",
    ):
        _run([*enter(pid), "ip", *words.split()])
    _run([*enter(pid), "nft", NO_IPV6])


def enter(pid: int) -> list[str]:
    """The command that runs another one in the node."""
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--uts", "--"]


def spawn(pid: int, argv: Sequence[str], path: Path, log: Path) -> None:
    """Start a program in the node that outlives us, with `path` first on its PATH."""
    with log.open("ab") as out:
        done = subprocess.run(
            [*enter(pid), "setsid", "--fork", *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd="/",
            env={
                "PATH": f"{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
            },
            check=False,
        )
    if done.returncode:
        raise ClusterError(f"{argv[0]} cannot be started, see {log}")


def processes(holder_pid: int) -> list[Process]:
    """What runs in the node itself: pods have PID namespaces of their own."""
    space = _namespace(holder_pid, "pid")
    found = []
    for pid in _pids():
        if _namespace(pid, "pid") == space:
            found.append(Process(pid, _parent(pid), _argv(pid), _memory(pid)))
    return found


def daemon(holder_pid: int, program: Path) -> int | None:
    """The host's PID of a program that `spawn` started, or None."""
    for each in processes(holder_pid):
        if each.parent == holder_pid and each.argv[:1] == (str(program),):
            return each.pid
    return None


def stop(pid: int, seconds: float = 15) -> None:
    """End a process: politely, then not."""
    _signal(pid, signal.SIGTERM)
    try:
        wait_until(lambda: not _alive(pid), seconds, "the end of a process")
    except ClusterError:
        kill(pid, seconds)


def kill(pid: int, seconds: float = 15) -> None:
    """End a process at once, as a crash or the kernel's want of memory would."""
    _signal(pid, signal.SIGKILL)
    wait_until(lambda: not _alive(pid), seconds, "the end of a killed process")


def remove(places: Places) -> None:
    """End the node with everything in it."""
    while (pid := holder(places)) is not None:
        _signal(pid, signal.SIGKILL)
        # The first process of a PID namespace is gone only when all the others are.
        wait_until(lambda gone=pid: not _alive(gone), 30, "the end of the node")  # type: ignore[misc]


def unlink(link: str) -> None:
    """Remove the host's end of the link, if it is there."""
    there = _LINKS / link
    if not there.exists():
        return
    try:
        _ip("link", "delete", link)
    except ClusterError:
        # It goes with the other end, whose network the kernel takes apart when nothing runs there.
        if there.exists():
            raise


def choose_network(seed: int, taken: Iterable[str]) -> str:
    """A 10.200.N.0/24 that overlaps none of `taken` (addresses or ranges in CIDR notation).

    `seed` says where to begin. Returns the first three octets; raises ClusterError.
    """
    used = [IPv4Network(each, strict=False) for each in taken]
    for step in range(256):
        network = f"10.200.{(seed + step) % 256}"
        candidate = IPv4Network(f"{network}.0/24")
        if not any(candidate.overlaps(each) for each in used):
            return network
    raise ClusterError("no /24 of 10.200.0.0/16 is free on this machine")


def routes() -> list[str]:
    """IPv4 ranges that this machine already has a route for, but for the default one."""
    listed = json.loads(_run(["ip", "-4", "-json", "route", "show", "table", "all"]) or "[]")
    found = []
    for each in listed:
        target = each.get("dst", "default")
        if target != "default" and each.get("type") != "multicast":
            found.append(target)
    return found


def hierarchies() -> tuple[list[Path], list[Path]]:
    """Where the machine's cgroup hierarchies are mounted: those of v1, and that of v2."""
    legacy: list[Path] = []
    unified: list[Path] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        point, kind = Path(left.split()[4]), right.split()[0]
        if kind == "cgroup":
            legacy.append(point)
        elif kind == "cgroup2":
            unified.append(point)
    return legacy, unified


def make_cgroups(name: str) -> None:
    """Make the cgroup below which the kubelet puts its pods; it insists that it exists."""
    legacy, unified = hierarchies()
    for root in legacy or unified:
        control = root / "cgroup.subtree_control"
        if control.exists():
            available = set((root / "cgroup.controllers").read_text().split())
            for each in sorted(CONTROLLERS & available):
                control.write_text(f"+{each}")
        group = root / name.lstrip("/")
        group.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # A new v1 cpuset is empty, and takes no process before it is given something.
            if (root / "cgroup.clone_children").exists() and (group / setting).exists():
                (group / setting).write_text((root / setting).read_text())


def remove_cgroups(name: str) -> None:
    """Remove the cluster's cgroup and all below it, once their processes are gone."""
    legacy, unified = hierarchies()
    # Where both are mounted, runc makes an empty group in v2's as well.
    for root in legacy + unified:
        group = root / name.lstrip("/")
        wait_until(lambda group=group: _emptied(group), 10, f"the end of {group}")  # type: ignore[misc]


def _emptied(group: Path) -> bool:
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)  # noqa: PTH106 - os.walk yields strings
    except OSError:
        return False
    return True


def settings() -> dict[str, str]:
    """The machine's settings that a cluster changes."""
    found = {}
    for name in SYSCTLS:
        path = Path("/proc/sys") / name
        if path.exists():
            found[name] = path.read_text().strip()
    return found


def apply_settings(values: dict[str, str]) -> None:
    """Write settings back, those of them that differ."""
    for name, value in values.items():
        path = Path("/proc/sys") / name
        if path.exists() and path.read_text().strip() != value:
            path.write_text(value)


def raise_limits() -> None:
    """Allow as many inotify instances as pods, the kubelet and containerd take together."""
    path = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(path.read_text()) < INOTIFY_INSTANCES:
        path.write_text(str(INOTIFY_INSTANCES))


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty when the process is gone."""
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _argv(pid: int) -> tuple[str, ...]:
    return tuple(os.fsdecode(each) for each in _read(pid, "cmdline").split(b"\0")[:-1])


def _field(pid: int, name: str) -> str:
    for line in _read(pid, "status").decode().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _first(pid: int) -> bool:
    """Whether a process is the first of a PID namespace below ours."""
    numbers = _field(pid, "NSpid").split()
    return len(numbers) > 1 and numbers[-1] == "1"


def _parent(pid: int) -> int:
    return int(_field(pid, "PPid") or 0)


def _memory(pid: int) -> int:
    return int((_field(pid, "RssAnon") or "0 kB").split()[0]) * 1024


def _namespace(pid: int, kind: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")  # noqa: PTH115 - it names no path
    except OSError:
        return None


def _alive(pid: int) -> bool:
    return _field(pid, "State")[:1] not in ("", "Z", "X")
