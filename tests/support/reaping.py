"""A reaper in the test's own process."""

import asyncio
import signal

from cloister_sandbox.processes import Reaper


def installed_reaper() -> Reaper:
    """Reaps on the running event loop.

    Told by a signal's handler: a process of pytest has threads that block no signals, as the exec
    server's all do (see cloister_sandbox.signals).
    """
    made = Reaper()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, made.reap)
    return made
