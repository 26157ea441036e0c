"""Where things are: binaries outside the tree by version, one state folder per checkout."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The checkout."""


def cache() -> Path:
    """Binaries, downloads and images, shared by all checkouts; CLOISTER_CACHE overrides it."""
    given = os.environ.get("CLOISTER_CACHE")
    if given:
        return Path(given)
    return Path("/var/cache/cloister") if os.geteuid() == 0 else Path.home() / ".cache" / "cloister"


def state_root() -> Path:
    """State of all clusters; CLOISTER_STATE overrides it.

    Every folder above it must be traversable by everybody: the root user of a user-namespaced pod
    is nobody on the host, and walks this path to its volumes.
    """
    return Path(os.environ.get("CLOISTER_STATE", "/var/lib/cloister-devcluster"))


def cluster_id() -> str:
    """The name of this checkout's cluster, at most 8 characters; CLOISTER_CLUSTER overrides it."""
    given = os.environ.get("CLOISTER_CLUSTER")
    return given[:8] if given else hashlib.sha256(str(ROOT).encode()).hexdigest()[:6]


@dataclass(frozen=True)
class Places:
    """The files of one cluster."""

    id: str
    base: Path

    @property
    def pki(self) -> Path:
        return self.base / "pki"

    @property
    def run(self) -> Path:
        return self.base / "run"

    @property
    def logs(self) -> Path:
        return self.base / "logs"

    @property
    def containerd(self) -> Path:
        return self.base / "containerd"

    @property
    def socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        return self.base / "kubeconfig"

    @property
    def lock(self) -> Path:
        return self.base.parent / f"{self.id}.lock"

    @property
    def record(self) -> Path:
        """Which process holds the node, and its addresses."""
        return self.base / "node.json"


def here() -> Places:
    """This checkout's cluster."""
    return Places(cluster_id(), state_root() / cluster_id())
