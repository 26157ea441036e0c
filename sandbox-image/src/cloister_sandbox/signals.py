"""Telling the kubelet's signal from a tool's.

A tool may signal the server, because they share a user. In a pod the server is PID 1, and a sender
outside its PID namespace is seen as pid 0: only that one ends the server. A tool can write any pid
into a signal that it queues (rt_sigqueueinfo), but cannot make it look sent by kill: the kernel
keeps the codes from 0 up for itself. A Python signal handler does not learn the sender, so the
signals are blocked and a thread waits for them.

While a tool's SIGTERM waits, the kernel drops the kubelet's. So the image asks the kubelet for
STOP, which tools cannot send (see guard): nothing stands in its way. Where a tool fills its user's
queue of signals the kernel forgets who sent one, and tells pid 0 and user 0. Of STOP that is the
truth. SIGTERM and SIGINT may be a tool's then; they are obeyed where the sender is a user whom the
pod's user namespace does not know, which the kernel never tells of a signal that it forgot.
"""

import os
import signal
import threading
from collections.abc import Callable

from .guard import STOP

_ENDING = (STOP, signal.SIGTERM, signal.SIGINT)
_SI_USER = 0
"""The code of a signal that kill(2) sent."""


def ends_server(number: int, sender: int, user: int, code: int, own_pid: int) -> bool:
    """Whether a signal from this sender and user, with this code, is obeyed by the server with this
    pid.
    """
    if own_pid != 1:
        return True
    return sender == 0 and code == _SI_USER and (number == STOP or user != 0)


def block() -> None:
    """Block the signals in this thread and all that it starts; call before there are others."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def watch(stop: Callable[[], object]) -> None:
    """Call `stop`, from a thread, at the first signal that is to be obeyed."""

    def wait() -> None:
        while True:
            seen = signal.sigwaitinfo(_ENDING)
            if ends_server(seen.si_signo, seen.si_pid, seen.si_uid, seen.si_code, os.getpid()):
                break
        stop()

    threading.Thread(target=wait, name="signals", daemon=True).start()
