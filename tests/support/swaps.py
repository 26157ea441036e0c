"""Exchanging two names while something else runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A process of its own: a thread would take turns with the calls that it is to race with.
_SWAP = """
import ctypes, os, select, sys
libc, exchange = ctypes.CDLL(None, use_errno=True), 2
one, other = (os.fsencode(each) for each in sys.argv[1:])
said = False
while True:
    for _ in range(100):
        if libc.renameat2(-1, one, -1, other, exchange) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")
    if not said:
        said = print("swapped", flush=True) or True
    if select.select([0], [], [], 0)[0]:
        break
"""


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Exchange two names as fast as possible; raises unless every exchange succeeds."""
    command = [sys.executable, "-I", "-S", "-c", _SWAP, os.fspath(one), os.fspath(other)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"swapped\n"
        try:
            yield
        finally:
            # It ends with its standard input.
            process.communicate()
    assert process.returncode == 0
