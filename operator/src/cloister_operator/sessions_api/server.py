"""The Sessions API's listener: TLS under a certificate of our own CA, renewed without a restart."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import grpc

from cloister_api.liveness import signs_of_life
from cloister_api.sessions.v1 import sessions_pb2_grpc
from cloister_api.wire import NOT_PACKED

from .. import names
from ..api.backend import Leadership, Reviewer, SessionsBackend
from ..identity import OPERATOR_LIFETIME, Authority, Identity
from .auth import Auth
from .forwarding import Forwarder
from .guard import Guard
from .limits import RateLimits
from .servicer import SessionsServicer

MAX_MESSAGE: Final = 4 * 1024 * 1024
"""Bytes of a request."""
IDLE_SECONDS: Final = 300.0
"""A connection without a call ends after this time: who left it there takes a place from others.
Clients that come back to it connect again by themselves."""
SILENT_SECONDS: Final = 60.0
"""A far end that says nothing is asked for a sign of life after this, and again: one that vanished,
or whose node did, ends no call by itself, and its watches and relays would keep their places."""
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    NOT_PACKED,
    # A long list may be larger than any request.
    ("grpc.max_send_message_length", 8 * MAX_MESSAGE),
    # Tokens with many groups are long.
    ("grpc.max_metadata_size", 24 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    ("grpc.max_concurrent_streams", 256),
    # Anybody in the cluster may connect; each takes 40 KB and a descriptor.
    ("grpc.max_allowed_incoming_connections", 4096),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
)
log = logging.getLogger(__name__)


class SessionsServer:
    """Serves the Sessions API."""

    def __init__(
        self,
        backend: SessionsBackend,
        reviewer: Reviewer,
        authority: Authority,
        *,
        ip_addresses: Sequence[str] = (),
        guard: Guard | None = None,
        limits: RateLimits | None = None,
        leadership: Leadership | None = None,
        idle_seconds: float = IDLE_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`ip_addresses`: further names of the certificate, such as the Service's address.

        `leadership`: where there are several processes, who of them leads; None is this one.
        `guard`: in place of one that keeps `limits` and forwards to the leader.
        `idle_seconds`: of a connection without a call. `silent_seconds`: after which a far end is
        asked for a sign of life, for which it has a third of that time.
        """
        self._certificate = _Renewed(authority, ip_addresses, clock)
        self._forwarder = Forwarder(leadership, lambda: authority.ca_pem) if leadership else None
        guard = guard or Guard(Auth(reviewer), limits=limits, forwarder=self._forwarder)
        self._doorkeeper = guard.doorkeeper
        self._looking: asyncio.Task[None] | None = None
        options = (
            *_OPTIONS,
            ("grpc.max_connection_idle_ms", int(1000 * idle_seconds)),
            *signs_of_life(silent_seconds, within=silent_seconds / 3),
        )
        self._server = grpc.aio.server(interceptors=[guard], options=options)
        sessions_pb2_grpc.add_SessionsServicer_to_server(
            SessionsServicer(backend, authority, clock), self._server
        )

    async def start(self, address: str = f"[::]:{names.SESSIONS_PORT}") -> int:
        """Listen; returns the port. Raises RuntimeError when the address is taken."""
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certificate.first,
            self._certificate.fetch,  # type: ignore[arg-type] # the stubs do not know of None
        )
        port = self._server.add_secure_port(address, credentials)
        await self._server.start()
        self._looking = asyncio.create_task(self._doorkeeper.run(port), name="doorkeeper")
        log.info("Sessions API ready on port %d", port)
        return port

    async def stop(self, grace: float = 5.0) -> None:
        """Take no new calls, and let those under way finish for `grace` seconds."""
        await self._server.stop(grace)
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        if self._forwarder is not None:
            await self._forwarder.close()


class _Renewed:
    """The server's certificate, a new one when a third of its time is left or another CA signs."""

    def __init__(
        self, authority: Authority, ip_addresses: Sequence[str], clock: Callable[[], datetime]
    ) -> None:
        self._authority = authority
        self._ip_addresses = tuple(ip_addresses)
        self._clock = clock
        self._identity = self._issue()
        self.first = _configuration(self._identity)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The next certificate when it is time for it; gRPC asks at every handshake.

        None lets gRPC keep what it has. Whatever else it is given replaces what all handshakes
        share, and one that another thread has just begun may then use what is freed already: the
        process crashes (grpc/grpc#36693). It asks in threads of its own, one at a time.
        """
        lasts = self._identity.not_after - self._clock() >= OPERATOR_LIFETIME / 3
        if lasts and self._signed_by == self._authority.issuer_pem:
            return None
        self._identity = self._issue()
        log.info("the Sessions API's certificate was renewed")
        return _configuration(self._identity)

    def _issue(self) -> Identity:
        self._signed_by = self._authority.issuer_pem
        return self._authority.sessions_api_server(
            self._clock(), [names.SESSIONS_SERVER_NAME], self._ip_addresses
        )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.private_key_pem, identity.certificate_pem)]
    )
