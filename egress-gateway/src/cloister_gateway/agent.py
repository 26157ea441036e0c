"""The agent: assembles the service, the resolver, the reports' end and health, and runs them."""

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc

from cloister_api.egress.v1 import egress_pb2_grpc
from cloister_api.liveness import signs_of_life
from cloister_api.wire import NOT_PACKED

from . import places
from .front import Front
from .health import Health
from .identity import Identity
from .pressure import Pressure
from .refusals import Refusals
from .reports import MAX_LINE
from .resolver import Lookup, Resolver, Upstream
from .service import Feed, HaproxyLog, Holder, Service, read_reports
from .settings import Settings
from .store import Store

MAX_MESSAGE = 32 * 1024 * 1024
"""Bytes; a state of all the sources that are allowed fits."""
log = logging.getLogger(__name__)


class Agent:
    """One agent. Its files are below the given folders, its ports the contract's."""

    def __init__(
        self,
        settings: Settings,
        state: Path = places.STATE,
        front: Path = places.FRONT,
        identity: Path = places.IDENTITY,
        lookup: Lookup | None = None,
    ) -> None:
        """Raises IdentityError without a certificate to serve with."""
        self._state = state
        self._identity = Identity(identity)
        runtime = Front(front / places.RUNTIME_SOCKET)
        self._holder = Holder(Store(state), runtime)
        self._feed = Feed()
        self._refusals = Refusals(self._holder, runtime, self._feed)
        self._health = Health(self._holder, runtime, by_name=settings.by_name)
        most = settings.unread_mib * 1024 * 1024
        self._pressure = Pressure(self._holder, runtime, self._feed, most)
        self._resolver = Resolver(
            self._holder.known, lambda: self._holder.ranges, lookup or Upstream()
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; OSError when a port is taken.

        Raises what ended a part: kubelet starts an agent anew that has all of them.
        """
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await self._resolver.start()
        reports = await self._listen()
        log_end, haproxy = await loop.create_datagram_endpoint(
            lambda: HaproxyLog(self._feed), local_addr=(places.LOOPBACK, places.LOG_PORT)
        )
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                NOT_PACKED,
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", 10_000),
                *signs_of_life(30, within=10),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.max_allowed_incoming_connections", 256),
                ("grpc.max_concurrent_streams", 64),
            ],
            maximum_concurrent_rpcs=256,
        )
        egress_pb2_grpc.add_EgressGatewayServicer_to_server(
            Service(self._holder, self._feed), server
        )
        server.add_secure_port(f"[::]:{places.GRPC_PORT}", self._identity.credentials())
        await server.start()
        await self._health.start()
        log.info("the agent serves; it holds revision %d", self._holder.state.revision)
        parts = (
            *(self._feed.run(), self._health.run(), self._refusals.run(), self._pressure.run()),
            *(self._resolver.lost(), haproxy.lost()),
        )
        try:
            await first_of(stopping.wait(), *parts)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await server.stop(grace=1.0)
            reports.close()
            log_end.close()
            self._resolver.close()
            await self._health.stop()

    async def _listen(self) -> asyncio.Server:
        path = self._state / places.REPORTS_SOCKET
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(
            functools.partial(read_reports, self._feed), path, limit=MAX_LINE
        )
        # The squids mount the folder for reading only, and run as the same user.
        path.chmod(0o600)
        return server


async def first_of(*parts: Coroutine[Any, Any, object]) -> None:
    """Run all until one ends, and end the others; raises what that one raised."""
    tasks = [asyncio.create_task(each) for each in parts]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
    for each in ended:
        each.result()
