"""Progress of long work: step, elapsed, what remains; and proof of life while a step runs."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence

TICK_SECONDS = 15.0


def remaining(estimates: Sequence[float], at: int, elapsed_in_step: float) -> float:
    """Seconds left when step `at` (0-based) has been running for `elapsed_in_step` seconds."""
    return max(0.0, estimates[at] - elapsed_in_step) + sum(estimates[at + 1 :])


def span(seconds: float) -> str:
    """Seconds, as a person says it."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def say(text: str) -> None:
    """Print a line at once."""
    print(f"      {text}", flush=True)


class Progress:
    """A sequence of steps with estimates, in seconds."""

    def __init__(self, estimates: Sequence[float]) -> None:
        self._estimates = list(estimates)

    @contextlib.contextmanager
    def step(self, index: int, what: str) -> Iterator[None]:
        """Announce a step, say every few seconds that it is alive, and how long it took."""
        began = time.monotonic()
        total = len(self._estimates)
        left = remaining(self._estimates, index, 0)
        say(f"({index + 1}/{total}) {what}; about {span(left)} left in all")
        done = threading.Event()

        def tick() -> None:
            while not done.wait(TICK_SECONDS):
                spent = time.monotonic() - began
                left = remaining(self._estimates, index, spent)
                say(f"({index + 1}/{total}) {what}: {span(spent)}, about {span(left)} left in all")

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
            sys.stdout.flush()
