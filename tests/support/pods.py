"""An exec server as in a pod: PID 1 of a PID namespace, without any privilege."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.main import TOLD_TO_END
from support.sandbox_server import Sandbox, sandbox

_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
LIKE_A_POD = (
    *_NAMESPACE,
    *("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
)
LIKE_A_ROOTISH_POD = (
    *_NAMESPACE,
    *("setpriv", "--bounding-set=-all,+chown,+dac_override,+fowner,+setgid,+setuid"),
    *("--inh-caps=-all", "--no-new-privs"),
)


def signal_from_outside(server: Sandbox, number: int) -> None:
    """Signal it from outside its namespace, as the kubelet does."""
    above = server.process.pid
    children = Path(f"/proc/{above}/task/{above}/children").read_text().split()
    os.kill(int(children[0]), number)


@contextlib.contextmanager
def claimed_pod(
    directory: Path, end: int, *, before: Sequence[str] = (), within: Sequence[str] = LIKE_A_POD
) -> Iterator[Sandbox]:
    """A claimed server; afterwards the signal `end` must end it in order.

    `before` is a command that starts the rest, outside the namespace that `within` makes.
    """
    with sandbox(directory, launcher=(*before, *within)) as server:
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
