"""What lasts does not end without a word, whatever ends it."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from cloister_api.cancelling import being_cancelled
from cloister_operator.tasks import EndedAlone, keep, lasting, together


async def cancelled_elsewhere() -> None:
    """Waits for what another one cancels."""
    other = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(other.cancel)
    await other


async def returns() -> None:
    await asyncio.sleep(0)


async def fails() -> None:
    raise ValueError("of the part")


async def lasts() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("part", [cancelled_elsewhere, returns])
async def test_an_end_that_nobody_asked_for_is_an_error(
    part: Callable[[], "asyncio.Future[None]"],
) -> None:
    with pytest.raises(EndedAlone, match="the part: "):
        await lasting("the part", part)


async def test_a_part_that_is_told_to_end_is_cancelled() -> None:
    task = asyncio.create_task(lasting("the part", lasts))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_cancelled_before_it_began_is_never_called() -> None:
    task = asyncio.create_task(lasting("the part", lasts))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("part", "error"),
    [(cancelled_elsewhere, EndedAlone), (returns, EndedAlone), (fails, ValueError)],
)
async def test_no_part_goes_on_without_the_others(
    part: Callable[[], "asyncio.Future[None]"], error: type[Exception]
) -> None:
    ended: list[str] = []

    async def other() -> None:
        try:
            await lasts()
        finally:
            ended.append("other")

    with pytest.raises(ExceptionGroup) as caught:
        await together({"one": other, "two": part, "three": other})
    assert [type(each) for each in caught.value.exceptions] == [error]
    assert ended == ["other", "other"]


async def test_parts_that_are_kept_in_a_group_may_be_cancelled() -> None:
    async with asyncio.TaskGroup() as group:
        task = keep(group, "one", lasts)
        await asyncio.sleep(0)
        task.cancel()


async def test_who_is_cancelled_knows_it_also_where_time_is_limited() -> None:
    """A time that is over cancels as well, and that is over with it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            try:
                await lasts()
            except asyncio.CancelledError:
                assert being_cancelled()
                raise
    assert not being_cancelled()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled_elsewhere()
    assert not being_cancelled()
