"""What the kernel answers where it has no room left, whatever it was asked for.

That says nothing of a file or process: who passes over what cannot be looked at must not pass over
it for that, or what is there would seem not to be.
"""

import contextlib
import errno
from collections.abc import Iterator

LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk without room answers."""
EXHAUSTED = (*LACKING, errno.EAGAIN)
"""EAGAIN is what a full table of processes answers."""
MEMORY = "memory"


def lacks(error: OSError) -> bool:
    """Whether an error says that a descriptor or memory is lacking."""
    return error.errno in LACKING


@contextlib.contextmanager
def passing_over() -> Iterator[None]:
    """A block that an OSError ends, without a word; one that says so is raised."""
    try:
        yield
    except OSError as error:
        if lacks(error):
            raise


def no_room(error: OSError) -> bool:
    """Whether it says so, or that the disk is full."""
    return lacks(error) or error.errno in FULL


def lacked(error: Exception) -> str:
    """Words for what the sandbox has no more of, for an error that says so; else none."""
    if isinstance(error, OSError) and error.errno in EXHAUSTED:
        return "processes or descriptors"
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return "threads"
    return ""
