"""Searches where the server lacks what a program takes."""

import errno
import os
import selectors
import signal
from typing import Any

import pytest

from cloister_sandbox import ripgrep
from cloister_sandbox.spawn import spawn

ENV = {"PATH": os.environ["PATH"]}


def test_who_has_no_room_for_a_program_is_not_told_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lack(*_: object) -> int:
        raise OSError(errno.EAGAIN, "no process")

    monkeypatch.setattr(ripgrep, "spawn", lack)
    with pytest.raises(BlockingIOError):
        ripgrep.Search(["x"], "/", ENV, 5)


def test_a_search_that_cannot_be_watched_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def start(_: object, *rest: object) -> int:
        started.append(spawn(["sleep", "60"], *rest))  # type: ignore[arg-type]
        return started[0]

    def lack(_: int) -> None:
        raise OSError(errno.EMFILE, "no descriptor")

    monkeypatch.setattr(ripgrep, "spawn", start)
    monkeypatch.setattr(ripgrep, "_life", lack)
    with pytest.raises(OSError, match="no descriptor"):
        ripgrep.Search(["x"], "/", ENV, 5)
    _, status = os.waitpid(started[0], 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_search_that_cannot_be_heard_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is that the kernel lacks for it."""
    forgotten: list[str] = []

    def start(_: object, *rest: Any) -> int:
        return spawn(["sleep", "60"], *rest)

    def lack(*_: object) -> None:
        raise OSError(errno.ENOMEM, "nothing left to wait with")

    monkeypatch.setattr(ripgrep, "spawn", start)
    monkeypatch.setattr(ripgrep, "forget_tree", forgotten.append)
    monkeypatch.setattr(selectors.PollSelector, "register", lack)
    search = ripgrep.Search(["x"], "/", ENV, 5)
    pid = search._pid
    with pytest.raises(OSError, match="nothing left"):
        next(search.output(lambda: False))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert len(forgotten) == 1
