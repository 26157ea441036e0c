"""Stopping a shell's command so that its shell goes on, where that can be done."""

import asyncio
import functools
import signal
from collections.abc import Collection
from typing import Any

from .kin import members, signal_all
from .looks import in_thread

INTERRUPT_AGAIN = 1.0
TERMINATE_AFTER = 2.0
KILL_AFTER = 5.0
"""Seconds after the first interrupt."""
ON_INTERRUPT = "\\trap '\\return 130' INT\n"
"""bash itself would end; so it ends the script that it runs, or one function of it.

Set anew for every command, and as late as can be: where `$(` is not closed bash 5.2 writes beyond
its memory, and a trap that was set earlier is what that destroys."""


async def interrupt(
    shell: int, mark: str, earlier: Collection[int], over: "asyncio.Future[Any]"
) -> None:
    """Interrupt what a shell runs, then terminate it.

    `earlier` are processes that commands before it left behind: they are not touched. Returns when
    `over` is done, or when it has to be killed with the shell: that is left to the caller.
    """
    for number, pause in (
        (signal.SIGINT, INTERRUPT_AGAIN),
        (signal.SIGINT, TERMINATE_AFTER - INTERRUPT_AGAIN),
        (signal.SIGTERM, KILL_AFTER - TERMINATE_AFTER),
    ):
        try:
            started = await in_thread(functools.partial(members, shell, mark, spared=earlier))
        except OSError:  # no descriptor is left to look for them
            return
        if over.done():
            return
        # bash first, which only ever hears an interrupt: it leaves the script as soon as what it
        # waits for has ended, and must know before that ends.
        signal_all([shell], signal.SIGINT)
        signal_all(started, number)
        # What is stopped hears nothing until it goes on.
        signal_all([shell, *started], signal.SIGCONT)
        await asyncio.wait([over], timeout=pause)
        if over.done():
            return
