"""Looking for processes, when nothing more can be started."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloister_sandbox import kin


class Exhausted(ThreadPoolExecutor):
    """One whose threads cannot be started at first."""

    left = 1

    def _adjust_thread_count(self) -> None:
        if self.left:
            self.left -= 1
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()


async def test_what_was_done_without_a_thread_is_not_done_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pool keeps it in its queue; later it would end what a later command has begun."""
    done: list[str] = []
    with Exhausted(1) as pool:
        monkeypatch.setattr(kin, "_looks", pool)
        await kin.in_thread(lambda: done.append("first"))
        await kin.in_thread(lambda: done.append("second"))
        assert await kin.in_thread(lambda: done.copy()) == ["first", "second"]
