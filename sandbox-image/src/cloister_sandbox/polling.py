"""What a descriptor says at this moment, without waiting for it."""

import select


def readable_now(fd: int) -> bool:
    """Whether there is something to read, or its end, or an error that a read would tell."""
    return events_now(fd) != 0


def events_now(fd: int) -> int:
    """What poll(2) tells a reader: POLLIN, POLLHUP when nobody has the other end open any more.

    It takes descriptors of any number, and none of its own.
    """
    looking = select.poll()
    looking.register(fd, select.POLLIN)
    found = looking.poll(0)
    return found[0][1] if found else 0
