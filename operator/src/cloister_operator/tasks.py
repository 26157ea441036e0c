"""Tasks without an end of their own, and cancellations that are somebody else's.

gRPC cancels the calls of a channel that is closed under them, and whoever waits for a task that is
cancelled is told so by the same error. It ends the task that waits as if that had been told to end:
without a word, and for a TaskGroup in good order, so that all others go on without it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

Part = Callable[[], Awaitable[object]]
"""What lasts until it is cancelled."""


class EndedAlone(Exception):
    """A part came to an end to which nobody had told it."""


def told_to_end() -> bool:
    """Whether the task that runs was cancelled, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def lasting(what: str, part: Part) -> NoReturn:
    """Run a part until cancelled; raises what it raises, and EndedAlone when it just ends."""
    try:
        await part()
    except asyncio.CancelledError as error:
        if told_to_end():
            raise
        raise EndedAlone(f"{what}: what it waited for was cancelled") from error
    raise EndedAlone(f"{what}: it returned")


def keep(group: asyncio.TaskGroup, what: str, part: Part) -> asyncio.Task[NoReturn]:
    """Run a part in a group, all of which ends when the part does without being cancelled."""
    return group.create_task(lasting(what, part), name=what)


async def together(parts: Mapping[str, Part]) -> NoReturn:
    """Run parts by name until cancelled; when one ends, all end, and its error is in the group that
    is raised.
    """
    async with asyncio.TaskGroup() as group:
        for what, part in parts.items():
            keep(group, what, part)
    raise EndedAlone("there were no parts")
