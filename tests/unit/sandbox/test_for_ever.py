"""What is to go on for as long as the server does."""

import asyncio

import pytest

from cloister_sandbox import finishing
from cloister_sandbox.finishing import for_ever


async def failing() -> None:
    raise ValueError("secret words")


async def cancelled_by_others() -> None:
    waited_for: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waited_for.cancel()
    await waited_for


async def ending() -> None:
    """As if it were done."""


@pytest.mark.parametrize("ends", [failing, cancelled_by_others, ending])
async def test_what_ends_a_watch_is_told_and_it_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ends: finishing.Watch
) -> None:
    monkeypatch.setattr(finishing, "AGAIN_SECONDS", 0.0)
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def watch() -> None:
        begun.put_nowait(None)
        await ends()

    watching = asyncio.create_task(for_ever(watch))
    async with asyncio.timeout(60):
        for _ in range(3):
            await begun.get()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert "test_for_ever" in caplog.text
    assert "secret" not in caplog.text


async def test_a_watch_ends_when_it_is_told_to() -> None:
    begun = asyncio.Event()

    async def watch() -> None:
        begun.set()
        await asyncio.Event().wait()

    watching = asyncio.create_task(for_ever(watch))
    await begun.wait()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
