"""Tasks without an end of their own.

A cancellation that is somebody else's (see cloister_api.cancelling) ends a task as if that had been
told to end: without a word, and for a TaskGroup in good order, so that all others go on without it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

from cloister_api.cancelling import being_cancelled

Part = Callable[[], Awaitable[object]]
"""What lasts until it is cancelled."""


class EndedAlone(Exception):
    """A part came to an end to which nobody had told it."""


async def lasting(what: str, part: Part) -> NoReturn:
    """Run a part until cancelled; raises what it raises, and EndedAlone when it just ends."""
    try:
        await part()
    except asyncio.CancelledError as error:
        if being_cancelled():
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
