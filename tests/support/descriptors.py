"""The descriptors of this process."""

import contextlib
import itertools
import os
import resource
from collections.abc import Iterator

from cloister_sandbox.hands import Hands
from support.eventually import until


def descriptors() -> int:
    """How many are open, as the kernel lists them."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


async def let_go(hands: Hands) -> int:
    """Wait until nothing is left to be closed; returns how many are open then."""
    await until(lambda: not (hands._left or hands._leaving or hands._busy))
    return descriptors()


@contextlib.contextmanager
def left(count: int) -> Iterator[None]:
    """This process can open no more than so many."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(each) for each in os.listdir("/proc/self/fd")}  # noqa: PTH208 - of numbers
    free = (each for each in itertools.count() if each not in taken)
    bound = next(itertools.islice(free, count, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (bound, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
