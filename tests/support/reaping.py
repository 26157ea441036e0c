"""A reaper in the test's own process."""

import asyncio
import signal
from itertools import count

from cloister_sandbox.processes import Reaper


def installed_reaper() -> Reaper:
    """Reaps on the running event loop.

    Told by a signal's handler: a process of pytest has threads that block no signals, as the exec
    server's all do (see cloister_sandbox.signals).
    """
    made = Reaper()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, made.reap)
    return made


class Usage:
    """What the kernel counted of a process that did nothing."""

    ru_utime = ru_stime = 0.0
    ru_maxrss = 0


class EndlessEnds:
    """In place of os.wait4: children that end without end, each under a number of its own."""

    def __init__(self) -> None:
        self.told = 0
        self._pids = count(2)

    def wait4(self, *_: int) -> tuple[int, int, Usage]:
        """The next one."""
        self.told += 1
        return next(self._pids), 0, Usage()


def no_ends(*_: int) -> tuple[int, int, Usage]:
    """In place of os.wait4: none has ended."""
    return 0, 0, Usage()
