"""Programs that are being started: each runs for a moment before it gets the number of its tree."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """What is the same as long as no start begins or ends."""

    changes: int
    threads: frozenset[int]
    """The kernel's numbers of those that start a program: it is their child until it has its
    number, and after."""


class Births:
    """Those of one server, whatever thread starts them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes = 0
        self._threads: set[int] = set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """From before a program is started until it has its number."""
        thread = threading.get_native_id()
        with self._lock:
            self._changes += 1
            self._threads.add(thread)
        try:
            yield
        finally:
            with self._lock:
                self._changes += 1
                self._threads.discard(thread)

    def now(self) -> Moment:
        """What is being started."""
        with self._lock:
            return Moment(self._changes, frozenset(self._threads))


BIRTHS = Births()
