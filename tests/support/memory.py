"""How much memory a process takes, as the kernel counts it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def resident(pid: int) -> int:
    """The memory that a process has, in bytes."""
    return _of(pid, "VmRSS")


def peak(pid: int) -> int:
    """The most memory that a process had, in bytes."""
    return _of(pid, "VmHWM")


@contextlib.contextmanager
def grows_by_less_than(pid: int, growth: int) -> Iterator[None]:
    """Check that a process never has so many bytes more than at the beginning."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is what it has now
    before = peak(pid)
    yield
    assert peak(pid) - before < growth


def _of(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(each.split()[1]) * 1024 for each in lines if each.startswith(f"{field}:"))
