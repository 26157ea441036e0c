"""Files of long outputs that nobody wants any more: none stays behind, whatever is lacking."""

# ruff: noqa: ASYNC240 - nothing but the test waits for its loop

import contextlib
import errno
import os
import resource
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cloister_sandbox.overflow import Overflow, Overflows
from cloister_sandbox.threads import aside
from support.eventually import until


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing more can be opened; what is open stays."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now, most))


@pytest.fixture
async def overflows(tmp_path: Path) -> AsyncIterator[Overflows]:
    """Of which nothing is left when they are closed."""
    made = Overflows(str(tmp_path))
    yield made
    made.close()
    await until(lambda: not any(tmp_path.iterdir()))


async def written(overflows: Overflows) -> Overflow:
    kept = overflows.new("a")
    kept.add(b"x")
    await kept.written()
    return kept


def done_aside() -> None:
    """Wait until everything is done that was laid aside before."""
    going = aside(int)
    assert going is not None
    going.result()


async def test_a_file_goes_where_no_descriptor_is_left(overflows: Overflows) -> None:
    files = [Path((await written(overflows)).path) for _ in range(3)]
    done_aside()  # its thread is there by now
    assert all(each.exists() for each in files)
    with no_descriptor_left():
        overflows.forget("a")
        done_aside()
    assert not any(each.exists() for each in files)


async def test_a_file_that_is_made_after_its_owner_went_is_not_made(
    overflows: Overflows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may be about to make it while its context is closed."""
    making, go_on, make = threading.Event(), threading.Event(), overflows._open

    def slow(name: str) -> int:
        making.set()
        go_on.wait()
        return make(name)

    monkeypatch.setattr(overflows, "_open", slow)
    late = overflows.new("a")
    late.add(b"x")
    await until(making.is_set)
    overflows.forget("a")
    done_aside()
    go_on.set()
    await late.written()
    monkeypatch.undo()
    kept = Path((await written(overflows)).path)
    assert list(Path(overflows.directory).iterdir()) == [kept]


async def test_a_directory_that_cannot_be_opened_is_in_nobodys_way(
    overflows: Overflows, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def lacking(path: str, *rest: int, **where: int) -> int:
        if path == overflows.directory:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return real(path, *rest, **where)

    monkeypatch.setattr(os, "open", lacking)
    assert (await written(overflows)).size == 0
    monkeypatch.undo()
    kept = await written(overflows)
    assert Path(kept.path).read_bytes() == b"x"
