"""Programs that are being started: each runs for a moment before it gets the number of its tree."""

import contextlib
import threading
from collections.abc import Iterator


class Births:
    """Those of one server, whatever thread starts them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = 0
        self._under_way = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """From before a program is started until it has its number."""
        with self._lock:
            self._begun += 1
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def quiet(self) -> int | None:
        """What changes with the next one; None while one is under way."""
        with self._lock:
            return None if self._under_way else self._begun


BIRTHS = Births()
