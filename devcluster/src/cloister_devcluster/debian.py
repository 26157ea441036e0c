"""The programs that the cluster needs from the operating system."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from .errors import ClusterError
from .progress import say

PROGRAMS: Mapping[str, str] = {
    "ip": "iproute2",
    "ipset": "ipset",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "openssl": "openssl",
    "gcc": "gcc",
    "pkg-config": "pkg-config",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "rg": "ripgrep",
}
"""Program -> Debian package."""
HEADERS: Mapping[str, str] = {
    "/usr/include/seccomp.h": "libseccomp-dev",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
"""File -> Debian package."""


def missing() -> list[str]:
    """Debian packages whose program or header is not there."""
    found = {package for program, package in PROGRAMS.items() if not shutil.which(program)}
    found |= {package for header, package in HEADERS.items() if not Path(header).exists()}
    return sorted(found)


def ensure() -> None:
    """Install what is missing, or raise ClusterError with the command that would."""
    packages = missing()
    if not packages:
        return
    line = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ClusterError(f"these Debian packages are missing; as root: {line}")
    say(f"installing Debian packages: {' '.join(packages)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update -q", line):
        done = subprocess.run(command.split(), env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"`{command}` failed: {done.stderr.strip()}")
    if missing():
        raise ClusterError(f"still missing after installing: {' '.join(missing())}")
