"""What a descriptor says at this moment, without waiting for it."""

import select


def readable_now(fd: int) -> bool:
    """Whether there is something to read, or its end, or an error that a read would tell.

    By poll(2), which takes descriptors of any number, and none of its own.
    """
    looking = select.poll()
    looking.register(fd, select.POLLIN)
    return bool(looking.poll(0))
