"""PID 1 of a node: gives the node its own mounts and kernel settings, then adopts and reaps.

Run by path, as the first process of new mount, PID, network and UTS namespaces:
`holder.py BASE HOSTNAME KEEP...`. When it ends, the kernel ends every process and mount of the
cluster. It writes BASE/run/ready when the namespaces can be used.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HIDDEN = ("/run", "/tmp", "/var/lib", "/var/log", "/opt")  # noqa: S108 - it gets a tmpfs
"""Folders that the node's programs write into; the host's own must not be touched."""
SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/all/route_localnet": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
}
"""Settings of the new network namespace. The last one exists only where the module is loaded."""


def main(base: Path, hostname: str, keep: list[Path]) -> None:
    """Set the node up and stay."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    socket.sethostname(hostname)
    # Mounts of one container must reach another; the peers are this node's only, not the host's.
    _mount("--make-rshared", "/")
    for folder in HIDDEN:
        _hide(folder, [path for path in keep if path.is_relative_to(folder)])
    for name, value in SYSCTLS.items():
        path = Path("/proc/sys") / name
        if path.exists():
            path.write_text(value)
    (base / "run" / "ready").touch()
    while True:
        signal.sigwait({signal.SIGCHLD})
        for _ in _reaped():
            pass


def _reaped() -> Iterator[int]:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid


def _hide(folder: str, keep: list[Path]) -> None:
    """Cover a folder with an empty one in memory, through which only `keep` shows."""
    held = [(path, os.open(path, os.O_PATH)) for path in keep]
    _mount("-t", "tmpfs", "-o", "mode=0755", "node", folder)
    for path, descriptor in held:
        path.mkdir(parents=True, exist_ok=True)
        _mount("--bind", f"/proc/self/fd/{descriptor}", str(path), descriptor=descriptor)
        os.close(descriptor)


def _mount(*arguments: str, descriptor: int | None = None) -> None:
    inherited = () if descriptor is None else (descriptor,)
    # Without --no-mtab, mount leaves its notes in the host's /run.
    command = ["mount", "--no-canonicalize", "--no-mtab", *arguments]
    subprocess.run(command, check=True, pass_fds=inherited)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [Path(each) for each in sys.argv[3:]])
