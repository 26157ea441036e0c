"""What a program prints, followed over as many connections as it takes.

Nothing is repeated and nothing lost: every byte has an offset, a lost stream goes on behind the
last one that arrived, and any other offset than that is an error. How it ended is never guessed.
"""

import asyncio
import codecs
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Self

import grpc

from cloister_api.exec.v1 import exec_pb2

from ._connection import Connection
from ._deadline import Ending, Leftover, exceeded, within
from ._errors import DataLossError, FailedPreconditionError, OutcomeUnknownError, call_error
from ._numbers import whole
from ._outcomes import Event, Exit, Gap, Output, start_failed
from ._silence import Lost, watched

# A shell is opened before, and a connection may have to be repaired.
BEGIN_SECONDS = 30.0
# Three times the time between the server's heartbeats.
SILENCE_SECONDS = 30.0
_ENDS = frozenset({"exited", "detached"})
OUTPUT_LIMIT = 64 * 1024 * 1024

Opener = Callable[[grpc.aio.Channel, int], Any]
"""Makes a call whose events begin at an offset."""


class Follower:
    """One reader's way through a program's output.

    first: starts what is followed, under an id of the client's choice; None when it was started.
    again: attaches to it, and never starts it. until: when it must have ended; signs of life after
    it raise DeadlineExceededError, and so does output that is more, or comes slower, than what a
    server can have kept.
    """

    def __init__(
        self,
        connection: Connection,
        first: Opener | None,
        again: Opener,
        offset: int = 0,
        until: Ending | None = None,
    ) -> None:
        self._connection = connection
        self._first = first
        self._again = again
        self._events: AsyncGenerator[Event | None, None] | None = None
        self._lock = asyncio.Lock()
        self._at_end = False
        self.until = until
        self._leftover = Leftover(until) if until else None
        self.offset = offset
        """Of the byte that comes next."""
        self.exit: Exit | None = None
        """How it ended, once that is known."""
        self.on_loss: Callable[[bool], object] | None = None
        """Called with True when the connection is lost, and with False when it is back."""

    async def begin(self) -> None:
        """Start it, and return when the server has said that it did.

        A server that only gives signs of life for BEGIN_SECONDS has not.
        """
        async with self._lock:
            events = self._follow()
            await within(BEGIN_SECONDS, "beginning it", anext(events))
            self._events = events

    async def next(self) -> Event | None:
        """What comes next; None when it has ended and everything was read."""
        async with self._lock:
            return await self._next()

    async def finish(self) -> Exit:
        """Wait for the end; what was not read before can still be read afterwards."""
        async with self._lock:
            if self.exit is None:
                here = self.offset
                try:
                    while await self._next() is not None:
                        pass
                finally:
                    await self._close()
                    if self.offset != here:
                        self.offset, self._at_end = here, False
                        self._leftover = Leftover(self.until) if self.until else None
            if self.exit is None:
                raise AssertionError("what is followed ends with an exit or an error")
            return self.exit

    async def aclose(self) -> None:
        """End the stream; reading on opens another."""
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            await events.aclose()

    async def _next(self) -> Event | None:
        if self._at_end:
            return None
        if self._events is None:
            self._events = self._follow()
        try:
            async for event in self._events:
                if event is not None:
                    return event
        except BaseException:
            # It cannot be gone on with; the next one begins where this one ended.
            self._events = None
            raise
        self._events = None
        self._at_end = True
        return None

    async def _follow(self) -> AsyncGenerator[Event | None, None]:
        """The events; None for the word that it was started."""
        lost = False
        asked = time.monotonic()
        async for attempt in self._connection.attempts(once=self._first is not None):
            async with attempt:
                call = (self._first or self._again)(attempt.channel, self.offset)
                messages = watched(call, SILENCE_SECONDS)
                try:
                    async for message in messages:
                        attempt.alive()
                        if lost:
                            lost = False
                            self._tell(lost)
                        if message.HasField("started"):
                            # From now on an unknown id means that its outcome is unknown, not that
                            # it never ran.
                            self._first = None
                            yield None
                            asked = time.monotonic()
                        event = self._understand(message)
                        if event is not None:
                            self._require_due(event, asked)
                            yield event
                        elif message.WhichOneof("event") in _ENDS:
                            return
                        asked = time.monotonic()  # a reader may take its time
                except grpc.aio.AioRpcError as error:
                    if self._first is None and error.code() is grpc.StatusCode.NOT_FOUND:
                        raise unknown_outcome() from None
                    raise
                finally:
                    call.cancel()
                    await messages.aclose()
                raise Lost("the exec server ended the stream without an outcome")
            lost = True
            self._tell(lost)

    def _understand(self, message: exec_pb2.OutputEvent) -> Event | None:
        kind = message.WhichOneof("event")
        if kind == "output":
            output = Output.from_proto(message.output)
            self._go_on(output.offset, output.end)
            return output
        elif kind == "gap":
            gap = Gap(message.gap.from_offset, message.gap.to_offset)
            self._go_on(gap.start, gap.end)
            return gap
        elif kind == "exited":
            self.exit = Exit.from_proto(message.exited)
        elif kind == "detached":
            self._go_on(message.detached.next_offset, message.detached.next_offset)
            self.exit = Exit.detached(message.detached)
        elif kind == "failed":
            raise start_failed(message.failed)
        else:
            self.require_time()
        return None

    def require_time(self) -> None:
        """Raise DeadlineExceededError when it should have been ended long ago."""
        if self.until is not None and self.until.is_over():
            raise exceeded("its time is up, and the exec server does not say that it has ended")

    def _require_due(self, event: Event, asked: float) -> None:
        if event.end == (event.offset if isinstance(event, Output) else event.start):
            self.require_time()  # bytes that are none are a sign of life
        size = len(event.data) if isinstance(event, Output) else 0
        if self._leftover is not None and not self._leftover.came(size, asked):
            raise exceeded("its time is up, and the exec server goes on sending output")

    def _go_on(self, start: int, end: int) -> None:
        if start != self.offset or end < start:
            raise call_error(
                grpc.StatusCode.DATA_LOSS,
                f"the output goes on at offset {start}, and not at {self.offset}",
            )
        self.offset = end

    def _tell(self, lost: bool) -> None:
        if self.on_loss is not None:
            self.on_loss(lost)


class AsyncOutput:
    """What AsyncProcess and AsyncCommand have in common: output that is read, and an end.

    `async for event in it` gives Output and Gap until the end, from where it was read last: a loop
    that was left or cancelled is gone on with by the next one. Several readers at a time each need
    an object of their own, from `attach`.
    """

    def __init__(self, connection: Connection, follower: Follower, again: Opener) -> None:
        self._connection = connection
        self._follower = follower
        self._again = again
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    @property
    def offset(self) -> int:
        """The offset of the byte that is read next; `attach` takes it."""
        return self._follower.offset

    @property
    def exit(self) -> Exit | None:
        """How it ended, as far as this object has seen; `result` waits for it."""
        return self._follower.exit

    @property
    def on_loss(self) -> Callable[[bool], object] | None:
        """Called while output is read: with True when the connection is lost, with False when it
        is back. To tell a person; reading goes on by itself.
        """
        return self._follower.on_loss

    @on_loss.setter
    def on_loss(self, call: Callable[[bool], object] | None) -> None:
        self._follower.on_loss = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._follower.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def text(self, stream: str | None = None) -> AsyncIterator[str]:
        """The output as text while it comes, from where it was read last.

        stream: only `stdout` or `stderr`; None is all. A character that arrives in parts is put
        together, and bytes that are no UTF-8 become U+FFFD. A gap is a line in brackets.
        """
        async for event in self:
            if isinstance(event, Gap):
                yield self._rest() + f"\n[{event.end - event.start} bytes were not kept]\n"
            elif stream in (None, event.stream):
                if event.stream not in self._decoders:
                    self._decoders[event.stream] = codecs.getincrementaldecoder("utf-8")("replace")
                text = self._decoders[event.stream].decode(event.data)
                if text:
                    yield text
        rest = self._rest()
        if rest:
            yield rest

    async def output(self, stream: str | None = None, *, limit: int = OUTPUT_LIMIT) -> bytes:
        """Everything it prints from the first byte to the end, whatever was read before.

        stream: only `stdout` or `stderr`; None is all, in the order it was printed.
        Raises DataLossError when the server has not kept all of it, FailedPreconditionError when
        there are more than `limit` bytes.
        """
        whole("limit", limit)
        follower = Follower(self._connection, None, self._again, until=self._follower.until)
        content = bytearray()
        async with contextlib.aclosing(follower):
            while (event := await follower.next()) is not None:
                if isinstance(event, Gap):
                    raise DataLossError(
                        f"{event.end - event.start} bytes of output were not kept",
                        grpc.StatusCode.DATA_LOSS,
                    )
                if stream not in (None, event.stream):
                    continue
                if len(content) + len(event.data) > limit:
                    raise FailedPreconditionError(
                        f"it has printed more than {limit} bytes",
                        grpc.StatusCode.FAILED_PRECONDITION,
                    )
                content += event.data
        self._follower.exit = follower.exit
        return bytes(content)

    def _rest(self) -> str:
        """What is left of characters that were not completed."""
        return "".join(each.decode(b"", final=True) for each in self._decoders.values())


def unknown_outcome() -> OutcomeUnknownError:
    """The error for an id that had been started and that the server does not know."""
    return OutcomeUnknownError(
        "the exec server does not know it any more: it was started anew, or has released it"
    )
