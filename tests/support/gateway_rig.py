"""A gateway pod in network namespaces, made of the very Debian that its image is made of.

Each part runs as a container would: chrooted, its root read-only, as user 65532 without
capabilities, with processes of its own. The agent runs on this interpreter. PID 1 is a shell that
stays what it is: a process that changes its user forgets that it is to end with its parent.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cloister_devcluster import images, inputs
from support.netns import Netns

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "egress-gateway" / "src"
UID = 65532
_UNPRIVILEGED = (
    "setpriv",
    f"--reuid={UID}",
    f"--regid={UID}",
    "--clear-groups",
    "--no-new-privs",
    "--inh-caps=-all",
    "--bounding-set=-all",
)
PARTS = ("front", "names", "sni", "by-name", "agent")


def debian() -> Path:
    """The unpacked Debian with squid and haproxy; RuntimeError where nobody has unpacked it."""
    (image,) = (each for each in images.IMAGES if each.name == "egress-gateway")
    root = inputs.root_folder(image.debian())
    if not (root / "usr/sbin/squid").exists():
        raise RuntimeError(
            "squid and haproxy are not unpacked for these tests; run `make unit`, or "
            "`PYTHONPATH=devcluster/src python3 -m cloister_devcluster unpack egress-gateway`"
        )
    return root


def prepare(root: Path) -> None:
    """Make the places in the unpacked Debian that the image has and Debian has not."""
    for each in ("opt/gateway/bin", "opt/gateway/app", "opt/gateway/errors", "run/cloister"):
        (root / each).mkdir(parents=True, exist_ok=True)
    python = root / "opt/gateway/bin/python"
    if not python.is_symlink():
        python.symlink_to("/usr/bin/python3")
    found = root / "usr/lib/python3/dist-packages/cloister.pth"
    if not found.exists():
        # At once and whole: others may start theirs just now.
        fresh = found.with_name(f"cloister.{os.getpid()}")
        fresh.write_text("/opt/gateway/app\n")
        fresh.replace(found)
    if not (root / "dev").exists():
        (root / "dev").mkdir()


class Pod:
    """One gateway pod's containers."""

    def __init__(
        self, space: Netns, folder: Path, resolv_conf: str, settings: dict[str, str] | None = None
    ) -> None:
        self.space = space
        self.folder = folder
        self._settings = settings or {}
        self._root = debian()
        prepare(self._root)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for each in ("state", "front", "identity", *(f"own-{part}" for part in PARTS)):
            (folder / each).mkdir(parents=True)
            os.chown(folder / each, UID, UID)
        (folder / "resolv.conf").write_text(resolv_conf)
        # Users other than root walk this path.
        for above in (folder, *folder.parents):
            if above.is_relative_to(tempfile.gettempdir()) and above != Path(tempfile.gettempdir()):
                above.chmod(above.stat().st_mode | 0o011)
        # As the chart sets them for the pod.
        space.run("sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=0")
        space.run("sysctl", "-qw", "net.ipv4.tcp_rmem=4096 131072 1048576")
        space.run("sysctl", "-qw", "net.ipv4.tcp_wmem=4096 16384 262144")

    def start(self, part: str) -> None:
        """Start a container, whose ended process there may be."""
        old = self._running.pop(part, None)
        if old is not None:
            old.wait()
        script = self._agent_script() if part == "agent" else self._script(part)
        environment = {"PATH": os.environ["PATH"], **self._settings}
        with (self.folder / f"{part}.log").open("ab") as log:
            self._running[part] = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("nsenter", f"--net={self.space.path}"),
                    *("unshare", "--mount", "--propagation=private", "--pid", "--fork"),
                    *("--kill-child", "sh", "-euc", script),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start_all(self) -> None:
        """Start all containers."""
        for part in PARTS:
            self.start(part)

    def _script(self, part: str) -> str:
        root, folder = self._root, self.folder
        shared = "front" if part == "front" else "state"
        only = ",ro" if shared == "state" else ""
        return f"""
mount --bind {root} {root}
mount --rbind /dev {root}/dev
mount -t proc proc {root}/proc
mount -t tmpfs none {root}/run
mkdir -p {root}/run/cloister/{shared} {root}/run/cloister/own
mount --bind {folder}/{shared} {root}/run/cloister/{shared}
mount -o remount,bind{only} {root}/run/cloister/{shared}
mount --bind {folder}/own-{part} {root}/run/cloister/own
mount --bind {SOURCES} {root}/opt/gateway/app
mount --bind {ROOT}/egress-gateway/errors {root}/opt/gateway/errors
mount -o remount,bind,ro {root}
chroot {root} {" ".join(_UNPRIVILEGED)} \
    /opt/gateway/bin/python -I -B -m cloister_gateway {part}
exit $?
"""

    def _agent_script(self) -> str:
        paths = f"{SOURCES}:{ROOT}/proto"
        run = " ".join(_UNPRIVILEGED)
        binds = "\n".join(
            f"mkdir /run/cloister/{each}\nmount --bind {self.folder}/{each} /run/cloister/{each}"
            for each in ("state", "front", "identity")
        )
        return f"""
mount -t proc proc /proc
mount --bind {self.folder}/resolv.conf /etc/resolv.conf
mount -t tmpfs none /run
mkdir /run/cloister
{binds}
cd /
PYTHONPATH={paths} {run} {sys.executable} -B -m cloister_gateway agent
exit $?
"""

    def processes(self, part: str, program: str = "") -> list[int]:
        """The processes of a container, by what their command line holds; parents first."""
        found = []
        todo = [self._running[part].pid]
        while todo:
            pid = todo.pop(0)
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                todo += [
                    int(each)
                    for task in Path(f"/proc/{pid}/task").iterdir()
                    for each in (task / "children").read_text().split()
                ]
            except OSError:
                continue
            if pid != self._running[part].pid and program in command:
                found.append(pid)
        return found

    def kill(self, part: str) -> None:
        """Kill a container, as the kernel would for want of memory."""
        for pid in self.processes(part)[:1]:
            os.kill(pid, signal.SIGKILL)
        self._running[part].wait()

    def stop(self) -> None:
        """End all containers; TimeoutError when anything of them is left."""
        inside = [pid for part in self._running for pid in self.processes(part)]
        for each in self._running.values():
            each.kill()
        for each in self._running.values():
            each.wait()
        self._running.clear()
        until(lambda: not any(map(_runs, inside)), "the end of all processes of a pod")

    def alive(self, part: str) -> bool:
        """Whether a container runs."""
        return self._running[part].poll() is None

    def log(self, part: str) -> str:
        """What a container has written."""
        return (self.folder / f"{part}.log").read_text(errors="replace")

    def cpu_seconds(self) -> dict[str, float]:
        """The CPU time that the containers have used, by part."""
        tick = os.sysconf("SC_CLK_TCK")
        used = {}
        for part in self._running:
            total = 0
            for pid in self.processes(part):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
            used[part] = total / tick
        return used

    def memory_kb(self) -> dict[str, int]:
        """The memory of the containers' own (Pss), by part."""
        used = {}
        for part in self._running:
            total = 0
            for pid in self.processes(part):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
            used[part] = total
        return used


def _runs(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(question: Any, what: str, seconds: float = 20.0) -> None:
    """Wait until a question is answered with yes; TimeoutError says what was waited for."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def remove(folder: Path) -> None:
    """Remove a pod's folder."""
    shutil.rmtree(folder, ignore_errors=True)
