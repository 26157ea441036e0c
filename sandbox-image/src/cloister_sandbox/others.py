"""Signals to processes that tools have given to other users.

Tools that are root in their pod can become anybody, as package managers do. The server is root then
too, without the capability (CAP_KILL) to signal whoever it likes: so it becomes that user for the
moment of the signal. The kernel keeps users thread by thread, and only the effective one changes,
by which nobody may signal, trace or look into this thread.
"""

import ctypes
import functools
import os
from pathlib import Path

_SET_USERS = {"x86_64": 117, "aarch64": 147}.get(os.uname().machine, -1)
"""The number of setresuid(2): glibc's function would change every thread."""
_UNCHANGED = ctypes.c_long(-1)
_PR_SET_DUMPABLE = 4
_libc = ctypes.PyDLL(None)
"""Its calls keep the interpreter's lock, for what never waits."""


def send(pid: int, number: int) -> None:
    """Signal a process, or the group of a negative one, whoever it belongs to.

    Raises ProcessLookupError when it is gone, PermissionError where the kernel refuses.
    """
    try:
        os.kill(pid, number)
    except PermissionError:
        user = _user(abs(pid))
        if user is None or os.geteuid() or not _may_change() or _become(user):
            raise
        try:
            os.kill(pid, number)
        finally:
            _become(0)
            # The kernel sets this anew with every change of user.
            _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _become(user: int) -> int:
    """Change this thread's effective user; returns what is not 0 when that is refused."""
    call, effective = ctypes.c_long(_SET_USERS), ctypes.c_long(user)
    return int(_libc.syscall(call, _UNCHANGED, effective, _UNCHANGED))


@functools.cache
def _may_change() -> bool:
    """Whether a change of user leaves this process closed to those of its own user."""
    try:
        opened = Path("/proc/sys/fs/suid_dumpable").read_text().strip() == "1"
    except OSError:
        opened = False
    return _SET_USERS >= 0 and not opened


def _user(pid: int) -> int | None:
    """The real user of a process; None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    # A name before it is whatever its owner likes, but holds no end of a line.
    line = next((each for each in status.split(b"\n") if each.startswith(b"Uid:\t")), None)
    return int(line.split()[1]) if line is not None else None
