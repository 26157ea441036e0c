"""The sockets of this process that gRPC opened: it does not tell their descriptors."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator


def internet_sockets() -> Iterator[socket.socket]:
    """A copy of each socket of this process for the internet, closed when the next one is asked
    for. Raises OSError where nothing can be looked at.

    gRPC's threads may close a descriptor at any moment; what is looked at, and changed, is a copy.
    """
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a Path costs more
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6):
                    yield copy
