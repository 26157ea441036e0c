"""What the server is right now, and how busy."""

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from enum import Enum

from .pace import Pace


class Phase(Enum):
    """The server's life: each phase comes after the one above it; FAILED is an end."""

    PREPARING = "preparing"
    WARM = "warm"
    CLAIMED = "claimed"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass
class ServerState:
    """Shared by all services; changed on the event loop only."""

    boot_id: str = field(default_factory=lambda: secrets.token_hex(16))
    phase: Phase = Phase.PREPARING
    problem: str = ""
    session_uid: str = ""
    awaits: set[str] = field(default_factory=set)
    """Directories whose files the operator has yet to bring."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever one of them has got its files."""
    awaits_proof: bool = False
    """Whether the setup script waits for the operator."""
    proven: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the operator has said that it may run."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the tools' processes."""
    pace: Pace = field(default_factory=Pace)


class Activity:
    """Counts calls and the time they take, on the monotonic clock."""

    def __init__(self) -> None:
        self._running = 0
        self._last = time.monotonic()
        self._active = 0.0

    @property
    def running(self) -> int:
        """Calls under way."""
        return self._running

    @property
    def idle_for(self) -> float:
        """Seconds since the last call began or ended; 0 while one runs."""
        return 0.0 if self._running else time.monotonic() - self._last

    @property
    def active(self) -> float:
        """Seconds during which at least one call ran, since the claim."""
        return self._active + (time.monotonic() - self._last if self._running else 0.0)

    def reset(self) -> None:
        """Forget the past: the session begins now."""
        self._last, self._active = time.monotonic(), 0.0

    def __enter__(self) -> None:
        if self._running == 0:
            self._last = time.monotonic()
        self._running += 1

    def __exit__(self, *_: object) -> None:
        self._running -= 1
        if self._running == 0:
            now = time.monotonic()
            self._active += now - self._last
            self._last = now
