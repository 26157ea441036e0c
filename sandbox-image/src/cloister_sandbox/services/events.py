"""Jobs as the API shows them: the stream of what one prints, and how it ended."""

import asyncio
import time
from collections.abc import AsyncGenerator

from google.protobuf import duration_pb2

from cloister_api.exec.v1 import exec_pb2

from ..errors import Busy, InvalidField, OutOfRange
from ..jobs import Ending, Failure, Job, Reason
from ..outputs import CHUNK, Missing, OutputStore, Policy
from .common import sendable

HEARTBEAT_SECONDS = 10.0
COALESCE_SECONDS = 0.005
"""Small output is sent at most this often, and a start is told so long after it, with what came."""
TOLD_SECONDS = 0.1
"""A start is told by then, though it waits for its turn."""
MAX_READERS = 64
_PORTIONS = ((64, CHUNK), (256, 65_536))
_SMALLEST = 16_384
"""Bytes that a reader gets at once, by how many there are: each may keep them here unread."""
MAX_HEAD = 1024 * 1024
MAX_TAIL = 16 * 1024 * 1024
MAX_SPOOL = 1024 * 1024 * 1024
_REASONS = {
    Reason.EXITED: exec_pb2.ExitInfo.REASON_EXITED,
    Reason.TIMED_OUT: exec_pb2.ExitInfo.REASON_TIMED_OUT,
    Reason.CANCELLED: exec_pb2.ExitInfo.REASON_CANCELLED,
    Reason.SHELL_LOST: exec_pb2.ExitInfo.REASON_SHELL_LOST,
    Reason.SHUTDOWN: exec_pb2.ExitInfo.REASON_SHUTDOWN,
    Reason.OOM_KILLED: exec_pb2.ExitInfo.REASON_OOM_KILLED,
    Reason.SIGNALLED: exec_pb2.ExitInfo.REASON_SIGNALLED,
}


def _require_reader(job: Job, offset: int) -> None:
    """Raise OutOfRange for an offset that is not printed yet, and Busy at the bound of readers."""
    if offset > job.store.total:
        raise OutOfRange(
            "OFFSET_BEYOND_END",
            f"offset {offset} is beyond the {job.store.total} bytes that were printed",
            total_bytes=str(job.store.total),
        )
    if job.store.readers >= MAX_READERS:
        why = f"{MAX_READERS} readers are attached"
        raise Busy("TOO_MANY_READERS", why, 1.0, "readers", MAX_READERS)


CONCLUSIONS = ("exited", "failed", "detached")
"""The kinds of event of which one, and nothing after it, ends what `follow` tells."""


class _Readers:
    """How many there are, of all jobs."""

    def __init__(self) -> None:
        self.count = 0

    def portion(self) -> int:
        """What one gets at once now."""
        return next((size for most, size in _PORTIONS if self.count <= most), _SMALLEST)


_readers = _Readers()


async def follow(
    job: Job,
    *,
    handle: str = "",
    offset: int = 0,
    replayed: bool = False,
    only_now: bool = False,
    leave_when_detached: bool = False,
    heartbeat: float = HEARTBEAT_SECONDS,
) -> AsyncGenerator[exec_pb2.OutputEvent, None]:
    """A job's events from an offset on; `handle` is what its caller calls it.

    What ends soon after it began is told in one event: a message costs its caller and this server
    more than a short program does.

    Its reader counts from the first step on, which raises OutOfRange for an offset that is not
    printed yet, and Busy at the bound of readers.

    Who does not take all of them closes it: left to the collector, it wakes the event loop twice.

    With `only_now` they end where the output ends now; with `leave_when_detached` when a shell's
    command goes on as a process. The reader is gone with the iterator; the job goes on.
    """
    _require_reader(job, offset)
    reader = job.store.reader(offset)
    _readers.count += 1
    events = Events(handle or job.id, replayed=replayed)
    sent_small = False
    try:
        if not (job.begun.done() or job.takes_input or only_now):
            await _first_news(job)
        limit = job.store.total
        quiet_since = sent_at = time.monotonic()
        while True:
            wait = sent_at + COALESCE_SECONDS - time.monotonic() if sent_small else 0
            if wait > 0 and job.running and job.store.total - reader.position < CHUNK:
                await job.store.changed(wait)
                if time.monotonic() < sent_at + COALESCE_SECONDS and job.running:
                    continue
            if only_now and reader.position >= limit and job.running:
                break
            found = await reader.take(_readers.portion())
            if found is None:
                if not job.running:
                    break
                if leave_when_detached and job.detached_as:
                    break
                if not events.told:
                    yield events.next()
                    continue  # it may have printed or ended meanwhile
                await job.store.changed(quiet_since + heartbeat - time.monotonic())
                now = time.monotonic()
                if now >= quiet_since + heartbeat and reader.position == job.store.total:
                    idle = exec_pb2.Heartbeat(idle_for=duration(now - sent_at))
                    yield events.next(heartbeat=idle)
                    quiet_since = now
                continue
            if isinstance(found, Missing):
                gap = exec_pb2.Gap(from_offset=found.start, to_offset=found.end)
                yield events.next(gap=gap)
                reader.advance(found.end)
            else:
                stream = exec_pb2.Output.Stream.ValueType(found.stream)
                output = exec_pb2.Output(stream=stream, offset=found.start, data=found.data)  # type: ignore[arg-type]
                yield events.next(output=output)
                reader.advance(found.end)
            sent_at = quiet_since = time.monotonic()
            sent_small = job.store.total - reader.position < CHUNK
        if job.ending is not None:
            yield events.next(exited=exit_info(job.ending, job.store))
        elif job.failure is not None:
            yield events.next(failed=exec_failure(job.failure))
        else:
            detached = exec_pb2.Detached(
                process_id=job.detached_as or job.id, next_offset=reader.position
            )
            yield events.next(detached=detached)
    finally:
        _readers.count -= 1
        job.store.leave(reader)


async def _first_news(job: Job) -> None:
    """Wait until a job prints or ends, until a moment after it began, and TOLD_SECONDS at most."""

    def soon(_: "asyncio.Future[None]") -> None:
        asyncio.get_running_loop().call_later(COALESCE_SECONDS, job.store.wake)

    job.begun.add_done_callback(soon)
    try:
        await job.store.changed(TOLD_SECONDS)
    finally:
        job.begun.remove_done_callback(soon)


class Events:
    """Numbers the events of one stream; the first one says that it was started, and as what."""

    def __init__(self, handle: str, *, replayed: bool) -> None:
        self._started = exec_pb2.Started(id=handle, replayed=replayed)
        self.told = 0

    def next(
        self,
        *,
        output: exec_pb2.Output | None = None,
        gap: exec_pb2.Gap | None = None,
        exited: exec_pb2.ExitInfo | None = None,
        detached: exec_pb2.Detached | None = None,
        failed: exec_pb2.ExecFailure | None = None,
        heartbeat: exec_pb2.Heartbeat | None = None,
    ) -> exec_pb2.OutputEvent:
        """The next event."""
        self.told += 1
        return exec_pb2.OutputEvent(
            seq=self.told,
            started=self._started if self.told == 1 else None,
            output=output,
            gap=gap,
            exited=exited,
            detached=detached,
            failed=failed,
            heartbeat=heartbeat,
        )


def exit_info(ending: Ending, store: OutputStore) -> exec_pb2.ExitInfo:
    """How a job ended and what is left of its output, as a message."""
    info = exec_pb2.ExitInfo(
        reason=_REASONS[ending.reason],
        wall=duration(ending.wall),
        cpu=duration(ending.cpu),
        cwd=sendable(ending.cwd),
        max_rss_bytes=ending.max_rss,
        surviving_processes=ending.survivors,
    )
    if ending.code < 0:
        info.signal = -ending.code
    else:
        info.code = ending.code
    if store.lost_bytes:
        info.truncation.total_bytes = store.total
        info.truncation.omitted_bytes = store.lost_bytes
    return info


def exec_failure(failure: Failure) -> exec_pb2.ExecFailure:
    """Why a job could not begin, as a message."""
    message = sendable(failure.message)
    kind = exec_pb2.ExecFailure.Kind.Value(f"KIND_{failure.kind}")
    return exec_pb2.ExecFailure(kind=kind, errno=failure.errno, message=message)


def policy(given: exec_pb2.OutputPolicy, *, one_stream: bool) -> Policy:
    """The bounds that were asked for; raises InvalidField beyond what may be."""
    for name, most in (
        ("head_bytes", MAX_HEAD),
        ("tail_bytes", MAX_TAIL),
        ("spool_bytes", MAX_SPOOL),
    ):
        if getattr(given, name) > most:
            raise InvalidField(f"output.{name}", f"must be at most {most}")
    if given.separate_stderr and one_stream:
        raise InvalidField("output.separate_stderr", "there is only one stream here")
    usual = Policy()
    return Policy(
        head=given.head_bytes or usual.head,
        tail=given.tail_bytes or usual.tail,
        spool=given.spool_bytes or usual.spool,
        separate_stderr=given.separate_stderr,
        block_when_full=given.block_when_full,
    )


def seconds(field: str, given: duration_pb2.Duration) -> float:
    """A duration; raises InvalidField when it is negative."""
    value = given.seconds + given.nanos / 1e9
    if value < 0:
        raise InvalidField(field, "must not be negative")
    return value


def duration(value: float) -> duration_pb2.Duration:
    """Seconds as a message."""
    whole, nanos = divmod(int(value * 1e9), 1_000_000_000)
    return duration_pb2.Duration(seconds=whole, nanos=nanos)
