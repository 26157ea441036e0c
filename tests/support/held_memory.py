"""Memory that the kernel waits for, as for a page of a file whose disk is gone.

By userfaultfd(2): this process does not serve the faults until it is asked to.

As a program: writes from such memory to its standard output, and makes a file once it does.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_SYSCALL, _LIST = (323, 217) if os.uname().machine == "x86_64" else (282, 61)
"""userfaultfd and getdents64"""
_API, _REGISTER, _ZERO = 0xC018AA3F, 0xC020AA00, 0xC020AA04
"""linux/userfaultfd.h"""
_MISSING, _VERSION = 1, 0xAA
PAGE = mmap.PAGESIZE
RELEASED_AFTER = 10.0
"""Seconds; who has not asked by then waits for the memory, too."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


class HeldMemory:
    """A page that is not there before `release`."""

    def __init__(self, *, patient: bool = False) -> None:
        """Raises OSError where the kernel does not let this process.

        `patient`: not released before it is asked for.
        """
        self._faults = _libc.syscall(_SYSCALL, os.O_CLOEXEC)
        if self._faults < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.address = _libc.mmap(None, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        fcntl.ioctl(self._faults, _API, struct.pack("QQQ", _VERSION, 0, 0))
        page = struct.pack("QQQQ", self.address, PAGE, _MISSING, 0)
        fcntl.ioctl(self._faults, _REGISTER, page)
        self.released = threading.Event()
        self._late = threading.Timer(RELEASED_AFTER, self.release)
        if not patient:
            self._late.start()

    def write(self, fd: int) -> int:
        """Write the page; waits for it."""
        return int(_libc.write(fd, ctypes.c_void_p(self.address), ctypes.c_size_t(PAGE)))

    def read(self, fd: int) -> int:
        """Read into the page; waits for it."""
        return int(_libc.read(fd, ctypes.c_void_p(self.address), ctypes.c_size_t(PAGE)))

    def size(self, fd: int) -> int:
        """Have the size of a terminal put into the page; waits for it."""
        number, page = ctypes.c_ulong(termios.TIOCGWINSZ), ctypes.c_void_p(self.address)
        return int(_libc.ioctl(fd, number, page))

    def list(self, fd: int) -> int:
        """List a directory into the page; waits for it."""
        return int(_libc.syscall(_LIST, fd, ctypes.c_void_p(self.address), ctypes.c_size_t(PAGE)))

    def release(self) -> None:
        """Let there be zeros."""
        self._late.cancel()
        if not self.released.is_set():
            self.released.set()
            fcntl.ioctl(self._faults, _ZERO, struct.pack("QQQq", self.address, PAGE, 0, 0))
            os.close(self._faults)

    def await_fault(self) -> None:
        """Wait until somebody waits for the page."""
        os.read(self._faults, 32)


@contextlib.contextmanager
def held(
    fd: int, use: Callable[[HeldMemory, int], object] = HeldMemory.write
) -> Iterator[HeldMemory]:
    """What a thread keeps locked, because it uses such memory for it."""
    memory = HeldMemory()
    thread = threading.Thread(target=use, args=[memory, fd])
    thread.start()
    try:
        memory.await_fault()
        yield memory
    finally:
        memory.release()
        thread.join()


if __name__ == "__main__":
    own = HeldMemory(patient=True)
    writer = threading.Thread(target=own.write, args=[1])
    writer.start()
    own.await_fault()
    Path(sys.argv[1]).touch()
    writer.join()
