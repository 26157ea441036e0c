"""Programs that a tool stops while they are being started, in the moment before they run.

Whoever starts one waits for that, and cannot be told to wait no longer. A tool that stops all that
it sees, again and again, hits most of them, and nobody else would ever let them go on.
"""

import asyncio
import contextlib
import signal

from .kin import signal_all, unnumbered
from .looks import in_thread
from .spawn import held_up

EVERY_SECONDS = 1.0


async def watch() -> None:
    """Let them go on, whenever a start takes long; ends when it is cancelled."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        if held_up(EVERY_SECONDS):
            # What runs has the number of its tree; for who does not stop this changes nothing.
            with contextlib.suppress(OSError):  # no descriptor to look: the next time will do
                signal_all(await in_thread(unnumbered), signal.SIGCONT)
