"""The descriptors of this process."""

import os

from cloister_sandbox.hands import Hands
from support.eventually import until


def descriptors() -> int:
    """How many are open, as the kernel lists them."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


async def let_go(hands: Hands) -> int:
    """Wait until nothing is left to be closed; returns how many are open then."""
    await until(lambda: not (hands._left or hands._leaving or hands._busy))
    return descriptors()
