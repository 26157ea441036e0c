"""What a program prints, kept for any number of readers who come when they like.

Offsets count the bytes of a program's life, over all its streams. Kept are the first bytes, the
last bytes, and between them as much as a file takes. The file has no name, so that nothing else in
the pod can change what was printed; it is written only when memory does not hold everything.
"""

import asyncio
import bisect
from collections.abc import Callable
from dataclasses import dataclass

from .spool import Spool
from .wakes import wake, woken

CHUNK = 262_144
"""Bytes that a reader gets at once at most; with TLS, larger messages cost less per byte."""
LIVE = 786_432
"""While a program runs, so much of the end is kept at least: readers take from there."""
BEYOND = 4 * CHUNK
"""Bytes that still come when a program is to wait: of what was read last, of what is being read of
the other stream, and, at the end, what the pipes of both hold."""
MERGED = 65_536
"""Bytes up to which pieces grow together; more are not worth the copy."""
MAX_PIECES = 2048
"""Pieces in memory at either end, however small: each takes a hundred bytes more than it has."""
MAX_RUNS = 65_536
"""Changes between streams that the file has; nine bytes each."""
MAX_LATE = 4 * 1024 * 1024
"""Bytes that may wait for the file before the program has to."""
GRACE_SECONDS = 0.5
"""For so long a program waits for readers who kept up until now; after that they lose."""


@dataclass(frozen=True)
class Policy:
    """What is kept, in bytes, and who waits for whom."""

    head: int = 32 * 1024
    tail: int = 64 * 1024
    spool: int = 64 * 1024 * 1024
    separate_stderr: bool = False
    block_when_full: bool = False


class Piece:
    """Bytes of one stream that were printed one after the other."""

    __slots__ = ("data", "start", "stream")

    def __init__(self, start: int, stream: int, data: bytes | bytearray) -> None:
        self.start = start
        self.stream = stream
        self.data = data

    @property
    def end(self) -> int:
        """Offset of the byte after the last."""
        return self.start + len(self.data)

    def since(self, offset: int) -> "Piece":
        """The part from an offset on, as a piece of its own: this one may still become longer."""
        if offset == self.start and isinstance(self.data, bytes):
            return Piece(offset, self.stream, self.data)
        return Piece(offset, self.stream, bytes(self.data[offset - self.start :]))

    def upto(self, most: int) -> "Piece":
        """At most so many of its first bytes."""
        if len(self.data) <= most:
            return self
        return Piece(self.start, self.stream, bytes(self.data[:most]))


@dataclass(frozen=True)
class Missing:
    """A range that is not kept any more."""

    start: int
    end: int


class Reader:
    """One reader's place; `store.leave(reader)` ends it."""

    def __init__(self, store: "OutputStore", offset: int) -> None:
        self._store = store
        self.position = offset
        self.kept_up = True
        """Whether the program still waits a moment for this reader."""

    async def take(self, most: int = CHUNK) -> Piece | Missing | None:
        """What comes next, of at most so many bytes; None when nothing has been printed since."""
        return await self._store.at(self.position, most)

    def advance(self, position: int) -> None:
        """Everything before this offset was passed on."""
        self.position = position
        self._store.advanced(self)


class OutputStore:
    """Used on the event loop only. `pause` and `resume` stop and start what fills the store."""

    def __init__(
        self, policy: Policy, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._policy = policy
        self._pause = pause
        self._resume = resume
        self._head: list[Piece] = []
        self._head_bytes = 0
        self._head_open = policy.head > 0
        self._tail: list[Piece] = []
        self._tail_bytes = 0
        self._spool = Spool(policy.spool, MAX_RUNS)
        self._readers: set[Reader] = set()
        self._waiters: set[asyncio.Future[None]] = set()
        self._flushing: asyncio.Task[None] | None = None
        self._paused = False
        self._giving_up: asyncio.TimerHandle | None = None
        self._consumed = 0
        self.total = 0
        self.complete = False

    @property
    def kept_bytes(self) -> int:
        """Bytes that this store occupies."""
        return self._head_bytes + self._tail_bytes + self._spool.size

    @property
    def lost_bytes(self) -> int:
        """Bytes that nobody can read any more."""
        kept = self._head_bytes + self._spool.length + self._tail_bytes
        return max(0, self.total - kept)

    @property
    def readers(self) -> int:
        """Readers that are attached."""
        return len(self._readers)

    def add(self, stream: int, data: bytes) -> None:
        """Append what was printed; may pause the source."""
        start = self.total
        self.total += len(data)
        if self._head_open:
            part = data[: self._policy.head - self._head_bytes]
            self._head_bytes += len(part)
            _append(self._head, Piece(start, stream, part))
            data, start = data[len(part) :], start + len(part)
            # Once closed for good: what is behind it is in the tail.
            full = self._head_bytes == self._policy.head
            self._head_open = not full and len(self._head) < MAX_PIECES
        if data:
            self._tail_bytes += len(data)
            _append(self._tail, Piece(start, stream, data))
            # A program that waits for its readers loses nothing of what still comes then.
            self._evict(max(self._policy.tail, LIVE) + BEYOND)
        self.wake()
        if not self._paused and self._must_pause(LIVE):
            self._paused = True
            self._pause()
            if not self._policy.block_when_full:
                loop = asyncio.get_running_loop()
                self._giving_up = loop.call_later(GRACE_SECONDS, self._give_up)

    def finish(self) -> None:
        """Nothing more is printed."""
        self.complete = True
        self._trim()
        self.wake()

    def reader(self, offset: int) -> Reader:
        """A new reader, from an offset that is at most `total`."""
        reader = Reader(self, offset)
        reader.kept_up = self.total - offset <= LIVE
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """A reader is gone."""
        self._readers.discard(reader)
        self._consumed = max(self._consumed, reader.position)
        self._trim()
        self._reconsider()

    def advanced(self, reader: Reader) -> None:
        """A reader passed something on."""
        if reader.position == self.total:
            reader.kept_up = True
        self._trim()
        self._reconsider()

    async def changed(self, seconds: float) -> None:
        """Wait until something is printed or everything was, at most so long."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await woken(waiter, seconds)
        finally:
            self._waiters.discard(waiter)

    async def at(self, offset: int, most: int = CHUNK) -> Piece | Missing | None:
        """What is kept from an offset on: a piece, or what is missing before the next one."""
        if offset >= self.total:
            return None
        for pieces in (self._tail, self._head):
            if pieces and pieces[0].start <= offset < pieces[-1].end:
                return _find(pieces, offset).upto(most)
        found = await self._spool.read(offset, most)
        if found is not None:
            return Piece(offset, *found)
        return Missing(offset, self._tail[0].start if self._tail else self.total)

    def close(self) -> None:
        """Forget everything."""
        self.complete = True
        self._head, self._tail = [], []
        self._head_bytes = self._tail_bytes = 0
        self._spool.close()
        if self._giving_up is not None:
            self._giving_up.cancel()
        self.wake()

    def _trim(self) -> None:
        """After the end, keep what was asked for, and what readers who kept up still want."""
        if self.complete and self._tail_bytes > self._policy.tail:
            if self._policy.block_when_full:
                # The program waited for them, also for the first one to come.
                first = min((each.position for each in self._readers), default=self._consumed)
            else:
                kept_up = (each.position for each in self._readers if each.kept_up)
                first = min(kept_up, default=self.total)
            self._evict(max(self._policy.tail, min(self.total - first, LIVE + BEYOND)))

    def _evict(self, keep: int) -> None:
        """Move the oldest of the tail to the file, or drop it when that is full."""
        while self._tail and (self._tail_bytes > keep or len(self._tail) > MAX_PIECES):
            oldest = self._tail.pop(0)
            excess = self._tail_bytes - keep
            if 0 < excess < len(oldest.data) and len(self._tail) < MAX_PIECES:
                rest = oldest.since(oldest.start + excess)
                oldest = Piece(oldest.start, oldest.stream, bytes(oldest.data[:excess]))
                self._tail.insert(0, rest)
            self._tail_bytes -= len(oldest.data)
            self._spool.add(oldest.start, oldest.stream, bytes(oldest.data))
        if self._spool.late and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._spool.late:
                await self._spool.write()
                self._reconsider()
        finally:
            self._flushing = None
        self.wake()

    def _must_pause(self, behind: int) -> bool:
        if self.complete:
            return False
        if self._spool.late > MAX_LATE:
            return True
        if self._policy.block_when_full:
            if self._spool.takes(BEYOND + CHUNK):
                return False
            floor = min((each.position for each in self._readers), default=self._consumed)
            return self.total - floor >= max(self._policy.tail, LIVE)
        return any(each.kept_up and self.total - each.position > behind for each in self._readers)

    def _reconsider(self) -> None:
        if self._paused and not self._must_pause(LIVE // 2):
            self._paused = False
            if self._giving_up is not None:
                self._giving_up.cancel()
                self._giving_up = None
            self._resume()

    def _give_up(self) -> None:
        """Who is still behind loses: a reader must not stop a program."""
        self._giving_up = None
        for each in self._readers:
            if self.total - each.position > LIVE // 2:
                each.kept_up = False
        self._reconsider()

    def wake(self) -> None:
        """Let those who wait for a change look."""
        for waiter in self._waiters:
            wake(waiter)
        self._waiters.clear()


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece, or make the last one longer: a thousand short lines are one piece."""
    last = pieces[-1] if pieces else None
    if (
        last is None
        or (last.end, last.stream) != (piece.start, piece.stream)
        or len(last.data) + len(piece.data) > MERGED
    ):
        pieces.append(piece)
        return
    if not isinstance(last.data, bytearray):
        last.data = bytearray(last.data)
    last.data += piece.data


def _find(pieces: list[Piece], offset: int) -> Piece:
    index = bisect.bisect_right(pieces, offset, key=lambda each: each.start) - 1
    return pieces[index].since(offset)
