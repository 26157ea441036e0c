"""The agent's gRPC service: takes states, and tells what was decided."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any, NoReturn

import grpc

from cloister_api.egress.v1 import egress_pb2, egress_pb2_grpc

from . import metrics
from .connections import Connections, ended
from .front import Front, FrontUnreachable
from .hosts import Hosts
from .ledger import Ledger, Page
from .ranges import Ranges
from .reports import Key, Report, Sum, decode
from .requests import InvalidField, to_state
from .sockets import leads_inside
from .state import Reason, State, losers
from .store import Store

OPERATOR = "operator:cloister"
CACHED_SECONDS = 2.0
"""After this time squid remembers no address of before: its own least is one second."""
MAX_PAGE = 5_000
"""Decisions in one message."""
log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class Holder:
    """The state that is held, and what follows from it."""

    def __init__(self, store: Store, front: Front) -> None:
        self._store = store
        self._front = front
        self._lock = asyncio.Lock()
        # It outlives the agent: who ran goes on while the operator is away, and a former leader's
        # states stay refused. Readiness waits for an Apply all the same.
        self.state = store.load() or State()
        self.applied = False
        # Of the one before this agent nobody knows how far it came.
        self._unlooked = True
        self._derive()

    def _derive(self) -> None:
        self.ranges = Ranges(self.state.denied_ranges)
        self._known = Hosts({each for hosts in self.state.policies.values() for each in hosts})
        metrics.SOURCES.set(len(self.state.sources))
        metrics.REVISION.set(self.state.revision)

    def known(self, name: str) -> str | None:
        """The pattern of any policy that allows the name."""
        return self._known.match(name)

    async def apply(self, state: State) -> None:
        """Hold this state; returns when it holds.

        Raises LookupError for an old one, FrontUnreachable when connections may not have been cut.
        """
        async with self._lock:
            held = self.state
            if state.version < held.version:
                raise LookupError(f"{state.version} is older than {held.version}, which is held")
            if state.version == held.version and not state.same_rules(held):
                raise LookupError(f"another state is held under {held.version}")
            added = set(state.denied_ranges) - set(held.denied_ranges)
            wider = not all(self.ranges.covers(each) for each in added)
            self._unlooked |= wider
            cutting = held.cutting | losers(held, state)
            self._hold(replace(state, cutting=cutting))
            if cutting:
                cut = await self._front.cut(cutting)
                metrics.CUT.inc(cut)
                log.info("connections cut: %d of %d sources", cut, len(cutting))
                self._hold(state)
            if wider and self.applied:
                await asyncio.sleep(CACHED_SECONDS)
            if self._unlooked:
                await self._cut_inside()
                self._unlooked = False
            self.applied = True

    async def _cut_inside(self) -> None:
        """See that no connection leads to a range that is denied. Whose one is, is known to squid
        alone: everybody's are cut, which is rare, for what is denied newly is the cluster's.
        """
        if await asyncio.to_thread(leads_inside, self.ranges):
            cut = await self._front.cut_all()
            metrics.CUT.inc(cut)
            log.warning("all connections cut: %d; one led to a range that is denied now", cut)

    def _hold(self, state: State) -> None:
        self._store.save(state)
        self.state = state
        self._derive()


class Feed:
    """The ledger, and those who wait for its next page."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._connections = Connections()
        self._turned = asyncio.Event()

    def take(self, report: Report) -> None:
        """Take a helper's report."""
        now = time.time()
        self._add(report.sums.items())
        self._add(self._connections.began(report.opened, now))
        if report.lost:
            self.ledger.lose(report.lost)
            metrics.LOST.inc(report.lost)

    def ended(self, line: bytes) -> None:
        """Take a line of haproxy's log."""
        each = ended(line)
        told = self._connections.over(each, time.time()) if each is not None else None
        if told is not None:
            self._add([told])

    def _add(self, sums: Iterable[tuple[Key, Sum]]) -> None:
        for key, each in sums:
            self.ledger.add(key, each)
            verdict = "allowed" if key.reason == Reason.ALLOWED else "denied"
            reason = key.reason if key.reason in set(Reason) else "Other"
            metrics.DECISIONS.labels(verdict, reason).inc(each.count)
            metrics.BYTES.labels("sent").inc(each.sent)
            metrics.BYTES.labels("received").inc(each.received)

    async def run(self) -> None:
        """Turn the page once a second."""
        while True:
            await asyncio.sleep(1.0)
            self._connections.forget(time.time())
            if self.ledger.turn():
                self._turned.set()
                self._turned = asyncio.Event()

    async def next_page(self) -> None:
        """Wait until there is a page that was not there before."""
        await self._turned.wait()


class Service(egress_pb2_grpc.EgressGatewayServicer):
    """Speaks with the operator, and with nobody else."""

    def __init__(self, holder: Holder, feed: Feed) -> None:
        self._holder = holder
        self._feed = feed
        self.boot_id = uuid.uuid4().hex

    async def Apply(  # noqa: N802 - the API's name
        self, request: egress_pb2.ApplyRequest, context: Context
    ) -> egress_pb2.ApplyResponse:
        """See egress.proto."""
        await _authorize(context)
        try:
            state = await asyncio.to_thread(to_state, request)
            # A caller that is gone must not leave a state half held.
            await asyncio.shield(self._holder.apply(state))
        except InvalidField as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except LookupError as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except FrontUnreachable as error:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, str(error))
        except OSError as error:
            await _abort(context, grpc.StatusCode.INTERNAL, f"the state file: {error.strerror}")
        return egress_pb2.ApplyResponse(
            term=state.term, revision=state.revision, boot_id=self.boot_id
        )

    async def Info(  # noqa: N802
        self, request: egress_pb2.InfoRequest, context: Context
    ) -> egress_pb2.InfoResponse:
        """See egress.proto."""
        del request
        await _authorize(context)
        state = self._holder.state
        return egress_pb2.InfoResponse(
            term=state.term,
            revision=state.revision,
            boot_id=self.boot_id,
            sources=len(state.sources),
            policies=len(state.policies),
        )

    async def Decisions(  # noqa: N802
        self, request: egress_pb2.DecisionsRequest, context: Context
    ) -> AsyncIterator[egress_pb2.DecisionsResponse]:
        """See egress.proto."""
        await _authorize(context)
        ledger = self._feed.ledger
        cursor = request.cursor if request.boot_id == self.boot_id else 0
        cursor = min(cursor, ledger.cursor)
        first = True
        while True:
            pages, lost = ledger.after(cursor)
            for message in self._messages(pages, lost):
                yield message
            if pages:
                cursor = pages[-1].cursor
            elif first:
                yield egress_pb2.DecisionsResponse(cursor=cursor, boot_id=self.boot_id)
            first = False
            if ledger.cursor == cursor:
                await self._feed.next_page()

    def _messages(self, pages: Iterable[Page], lost: int) -> Iterable[egress_pb2.DecisionsResponse]:
        for page in pages:
            rows = list(page.sums.items())
            # Only a page's last message has its cursor: who stops in between begins it again.
            for at in range(0, len(rows) or 1, MAX_PAGE):
                whole = at + MAX_PAGE >= len(rows)
                yield egress_pb2.DecisionsResponse(
                    cursor=page.cursor if whole else page.cursor - 1,
                    boot_id=self.boot_id,
                    decisions=[_decision(key, each) for key, each in rows[at : at + MAX_PAGE]],
                    lost=lost,
                )
                lost = 0


def _decision(key: Key, each: Sum) -> egress_pb2.Decision:
    made = egress_pb2.Decision(
        pod_uid=key.pod_uid,
        address=key.address,
        host=key.host,
        port=key.port,
        allowed=key.reason == Reason.ALLOWED,
        reason=key.reason,
        count=each.count,
        bytes_sent=each.sent,
        bytes_received=each.received,
    )
    made.first.FromMilliseconds(int(each.first * 1000))
    made.last.FromMilliseconds(int(each.last * 1000))
    return made


async def _authorize(context: Context) -> None:
    uris = context.auth_context().get("peer_uri", ())
    if OPERATOR.encode() not in uris:
        await _abort(
            context, grpc.StatusCode.PERMISSION_DENIED, "only the operator may make this call"
        )


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort returned")


class HaproxyLog(asyncio.DatagramProtocol):
    """Hears what haproxy logs."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        del exc
        self._lost.set()

    async def lost(self) -> None:
        """Wait until nothing is heard any more: asyncio gives a socket up without a word."""
        await self._lost.wait()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """A line."""
        del addr
        self._feed.ended(data)


async def read_reports(
    feed: Feed, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One helper's connection, for as long as it lasts."""
    with contextlib.closing(writer):
        while line := await _line(reader):
            try:
                feed.take(decode(line))
            except ValueError:
                log.warning("a helper's report cannot be read")
                return


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next whole line; empty at the end, and for one beyond the reader's limit."""
    try:
        return await reader.readuntil(b"\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        return b""
