"""What the helpers of squid tell the agent: decisions and bytes, summed up, over a Unix socket.

A helper never waits for the agent. What it cannot tell is kept within a bound, and told when the
agent is there again; what is over the bound is counted as lost.
"""

import json
import socket
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import NamedTuple

MAX_PENDING = 4096
"""Sums that wait to be told, and connections that do."""
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


class Client(NamedTuple):
    """The sandbox's end of a connection."""

    address: str
    port: int


@dataclass
class Report:
    """What waits to be told, or was told at once, within bounds."""

    sums: dict[Key, Sum] = field(default_factory=dict)
    opened: dict[Client, Key] = field(default_factory=dict)
    """Connections that were admitted: haproxy alone knows their bytes, and it knows no host."""
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

    def open(self, client: Client, key: Key) -> None:
        """Tell which host a connection is for; beyond the bound its bytes are told of nobody."""
        if len(self.opened) < MAX_PENDING:
            self.opened[client] = key

    def __bool__(self) -> bool:
        return bool(self.sums or self.opened or self.lost)

    def take(self) -> "Report":
        """A part of it that one line holds, which is then no longer in it."""
        sums = {key: self.sums.pop(key) for key in list(self.sums)[:_PART]}
        opened = {key: self.opened.pop(key) for key in list(self.opened)[:_PART]}
        lost, self.lost = self.lost, 0
        return Report(sums, opened, lost)


def encode(report: Report) -> bytes:
    """One line for the agent."""
    return (
        json.dumps(
            {
                "sums": [[*astuple(key), *astuple(each)] for key, each in report.sums.items()],
                "opened": [[*client, *astuple(key)] for client, key in report.opened.items()],
                "lost": report.lost,
            }
        ).encode()
        + b"\n"
    )


def decode(line: bytes) -> Report:
    """What `encode` wrote; ValueError for anything else."""
    try:
        data = json.loads(line)
        report = Report(lost=int(data["lost"]))
        for *key, first, last, count, sent, received in data["sums"]:
            report.sums[_key(*key)] = Sum(
                float(first), float(last), int(count), int(sent), int(received)
            )
        for address, port, *key in data["opened"]:
            report.opened[Client(str(address), int(port))] = _key(*key)
        return report
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a report: {type(error).__name__}") from None


def _key(address: object, pod_uid: object, host: object, port: int, reason: object) -> Key:
    return Key(str(address), str(pod_uid), str(host), int(port), str(reason))


class Reporter:
    """A helper's end. `clock` counts seconds that only grow."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self.pending = Report()
        self._socket: socket.socket | None = None
        self._line = b""
        self._sent = 0
        self._due = 0.0

    def wait(self) -> float | None:
        """Seconds until `flush` has work to do; None while there is none."""
        if not (self.pending or self._line):
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
            while self._line or self.pending:
                if not self._line:
                    self._line, self._sent = encode(self.pending.take()), 0
                self._sent += connection.send(self._line[self._sent :])
                if self._sent == len(self._line):
                    self._line = b""
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            self._due = now + RETRY_SECONDS

    def close(self) -> None:
        """Hang up. A line that the agent did not have whole is told again."""
        self._sent = 0
        if self._socket is not None:
            self._socket.close()
            self._socket = None

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
