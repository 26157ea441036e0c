"""The descriptors of this process."""

import contextlib
import itertools
import os
import resource
from collections.abc import Iterator

from cloister_sandbox.hands import Hands
from support.eventually import until


def descriptors() -> int:
    """How many are open, as the kernel lists them.

    There may be fewer at any time: what earlier tests let go of, connections too, closes later.
    """
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


async def let_go(hands: Hands) -> int:
    """Wait until nothing is left to be closed; returns how many are open then."""
    await until(lambda: not (hands._left or hands._leaving or hands._busy))
    return descriptors()


@contextlib.contextmanager
def left(count: int, pid: int = 0) -> Iterator[None]:
    """This process, or another one, can open no more than so many."""
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    open_now = f"/proc/{pid or 'self'}/fd"
    listed = os.listdir(open_now)  # noqa: PTH208 - of numbers, also of the one that lists them
    taken = {int(each) for each in listed if os.path.lexists(f"{open_now}/{each}")}
    free = (each for each in itertools.count() if each not in taken)
    bound = next(itertools.islice(free, count, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (bound, usual[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
