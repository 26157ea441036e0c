"""What the helpers of squid tell the agent: decisions and bytes, summed up, over a Unix socket.

A helper never waits for the agent. What it cannot tell is kept within a bound, and told when the
agent is there again; what is over the bound is counted as lost.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MAX_PENDING = 4096
"""Keys that wait to be told."""
FLUSH_SECONDS = 0.1
RETRY_SECONDS = 0.5
_PART = 512
"""Reports in one line, so that a line has a bound, too."""
MAX_LINE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Key:
    """What is summed up together."""

    address: str
    pod_uid: str
    host: str
    port: int
    reason: str


@dataclass(slots=True)
class Sum:
    """Decisions of one key, and the bytes of its connections that ended."""

    first: float
    last: float
    """Seconds since the epoch."""
    count: int = 0
    sent: int = 0
    received: int = 0

    def add(self, other: "Sum") -> None:
        """Take another sum of the same key in."""
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)
        self.count += other.count
        self.sent += other.sent
        self.received += other.received


@dataclass
class Pending:
    """Sums that wait to be told, at most MAX_PENDING."""

    sums: dict[Key, Sum] = field(default_factory=dict)
    lost: int = 0

    def add(self, key: Key, each: Sum) -> None:
        """Sum up; a new key beyond the bound is counted as lost."""
        held = self.sums.get(key)
        if held is not None:
            held.add(each)
        elif len(self.sums) < MAX_PENDING:
            self.sums[key] = each
        else:
            self.lost += each.count


def encode(sums: Mapping[Key, Sum], lost: int) -> bytes:
    """One line for the agent."""
    rows = [
        [
            *(key.address, key.pod_uid, key.host, key.port, key.reason),
            *(each.first, each.last, each.count, each.sent, each.received),
        ]
        for key, each in sums.items()
    ]
    return json.dumps({"sums": rows, "lost": lost}).encode() + b"\n"


def decode(line: bytes) -> tuple[dict[Key, Sum], int]:
    """What `encode` wrote; ValueError for anything else."""
    try:
        data = json.loads(line)
        sums = {}
        for address, uid, host, port, reason, first, last, count, sent, received in data["sums"]:
            key = Key(str(address), str(uid), str(host), int(port), str(reason))
            sums[key] = Sum(float(first), float(last), int(count), int(sent), int(received))
        return sums, int(data["lost"])
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a report: {type(error).__name__}") from None


class Reporter:
    """A helper's end. `clock` counts seconds that only grow."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._pending = Pending()
        self._socket: socket.socket | None = None
        self._unsent = b""
        self._due = 0.0

    def add(self, key: Key, each: Sum) -> None:
        """Tell this at the next occasion."""
        self._pending.add(key, each)

    def wait(self) -> float | None:
        """Seconds until `flush` has work to do; None while there is none."""
        if not (self._pending.sums or self._pending.lost or self._unsent):
            return None
        return max(0.0, self._due - self._clock())

    def flush(self) -> None:
        """Tell what waits, when it is time, as far as that goes without waiting."""
        now = self._clock()
        if self.wait() is None or now < self._due:
            return
        self._due = now + FLUSH_SECONDS
        try:
            connection = self._socket or self._connect()
            while self._unsent or self._take():
                sent = connection.send(self._unsent)
                self._unsent = self._unsent[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._disconnect()
            self._due = now + RETRY_SECONDS

    def close(self) -> None:
        """Hang up; what was not told is lost."""
        self._unsent = b""
        self._disconnect()

    def _take(self) -> bool:
        """Make the next line of what waits; False when nothing does."""
        pending = self._pending
        if not pending.sums and not pending.lost:
            return False
        keys = list(pending.sums)[:_PART]
        self._unsent = encode({key: pending.sums.pop(key) for key in keys}, pending.lost)
        pending.lost = 0
        return True

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.connect(str(self._path))
        except OSError:
            made.close()
            raise
        self._socket = made
        return made

    def _disconnect(self) -> None:
        """Forget the connection; of a line that was cut in the middle the agent heard nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._unsent:
            # The beginning of the line may be gone: it is made whole again, or counted.
            with contextlib.suppress(ValueError):
                sums, lost = decode(self._unsent)
                self._unsent = b""
                self._pending.lost += lost
                for key, each in sums.items():
                    self._pending.add(key, each)
