"""kubectl port-forward for tests that need a raw connection to a pod."""

import contextlib
import subprocess
from collections.abc import Iterator

from support.cluster import KUBECTL, SANDBOXES


@contextlib.contextmanager
def forwarded(pod: str, port: int, namespace: str = SANDBOXES) -> Iterator[str]:
    """Yield a local host:port that leads to the pod's port."""
    process = subprocess.Popen(
        [KUBECTL, "port-forward", f"pod/{pod}", f":{port}", "-n", namespace],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # "Forwarding from 127.0.0.1:40001 -> 7443"
        assert line.startswith("Forwarding from 127.0.0.1:"), line
        yield f"127.0.0.1:{line.split()[2].rsplit(':', 1)[1]}"
    finally:
        process.terminate()
        process.communicate()
