"""Telling who cancels a task."""

import asyncio


def being_cancelled() -> bool:
    """Whether somebody cancels the task that runs, and not only what it waits for.

    gRPC raises CancelledError by itself too: where it cannot send the end of a stream that has just
    broken it cancels the call, whose status is then lost; and when its channel is closed. And who
    waits for a task that is cancelled is told so by the same error. Taken for our caller's wish,
    such a task would end without a word.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
