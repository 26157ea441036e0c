"""Signals to the server: those that end it, and the ends of children.

All of them are blocked, and none interrupts what the server does. Tools share its user, so they can
send SIGCHLD as fast as they like; in a signal's handler Python may wait for a lock that the same
thread holds, for ever, where it has no room to tell of the signal. What is blocked waits once,
however often it is sent.

In a pod the server is PID 1, and a sender outside its PID namespace is seen as pid 0: only that one
ends the server. A tool can write any pid into a signal that it queues (rt_sigqueueinfo), but cannot
make it look sent by kill: the kernel keeps the codes from 0 up for itself. A Python signal handler
does not learn the sender, so a thread waits for these signals.

While a tool's SIGTERM waits, the kernel drops the kubelet's. So the image asks the kubelet for
STOP, which tools cannot send (see guard): nothing stands in its way. Where a tool fills its user's
queue of signals the kernel forgets who sent one, and tells pid 0 and user 0. Of STOP that is the
truth. SIGTERM and SIGINT may be a tool's then; they are obeyed where the sender is a user whom the
pod's user namespace does not know, which the kernel never tells of a signal that it forgot.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable

from .guard import STOP

_ENDING = (STOP, signal.SIGTERM, signal.SIGINT)
_SI_USER = 0
"""The code of a signal that kill(2) sent."""
_SIGNALS_BYTES = 128
"""A sigset_t of glibc; also a signalfd_siginfo."""
_libc = ctypes.CDLL(None, use_errno=True)


def ends_server(number: int, sender: int, user: int, code: int, own_pid: int) -> bool:
    """Whether a signal from this sender and user, with this code, is obeyed by the server with this
    pid.
    """
    if own_pid != 1:
        return True
    return sender == 0 and code == _SI_USER and (number == STOP or user != 0)


def block() -> None:
    """Block the signals in this thread and all that it starts; call before there are others."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDING, signal.SIGCHLD})


def watch_children(ended: Callable[[], object]) -> None:
    """Call `ended` on the running event loop, for its life, when children have ended, or somebody
    says so. Raises OSError without a descriptor.
    """
    signals = ctypes.create_string_buffer(_SIGNALS_BYTES)
    _libc.sigemptyset(signals)
    _libc.sigaddset(signals, int(signal.SIGCHLD))
    fd: int = _libc.signalfd(-1, signals, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

    def told() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(fd, _SIGNALS_BYTES)
        ended()

    asyncio.get_running_loop().add_reader(fd, told)


def watch(stop: Callable[[], object]) -> None:
    """Call `stop`, from a thread, at the first signal that is to be obeyed."""

    def wait() -> None:
        while True:
            seen = signal.sigwaitinfo(_ENDING)
            if ends_server(seen.si_signo, seen.si_pid, seen.si_uid, seen.si_code, os.getpid()):
                break
        stop()

    threading.Thread(target=wait, name="signals", daemon=True).start()
