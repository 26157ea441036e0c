"""An exec server as in a pod: PID 1 of a PID namespace, without any privilege."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.main import TOLD_TO_END
from support.sandbox_server import Sandbox, sandbox

LIKE_A_POD = (
    *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
    *("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
)


def signal_from_outside(server: Sandbox, number: int) -> None:
    """Signal it from outside its namespace, as the kubelet does."""
    above = server.process.pid
    children = Path(f"/proc/{above}/task/{above}/children").read_text().split()
    os.kill(int(children[0]), number)


@contextlib.contextmanager
def claimed_pod(directory: Path, end: int, *, before: Sequence[str] = ()) -> Iterator[Sandbox]:
    """A claimed server; afterwards the signal `end` must end it in order.

    `before` is a command that starts the rest, outside the namespace.
    """
    with sandbox(directory, launcher=(*before, *LIKE_A_POD)) as server:
        try:
            server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
            server.claim()
            yield server
            signal_from_outside(server, end)
            assert server.process.wait(timeout=20) == TOLD_TO_END
        finally:
            # Who started the namespace would leave what runs in it.
            with contextlib.suppress(OSError, IndexError):
                signal_from_outside(server, signal.SIGKILL)
