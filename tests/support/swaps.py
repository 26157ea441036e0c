"""Exchanging two names while something else runs."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXCHANGE = 2


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Exchange two names as fast as possible."""
    libc = ctypes.CDLL(None)
    stop = threading.Event()
    results: set[int] = set()
    names = os.fsencode(one), os.fsencode(other)

    def swap() -> None:
        while not stop.is_set():
            results.add(libc.renameat2(-1, names[0], -1, names[1], _EXCHANGE))

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert results == {0}
