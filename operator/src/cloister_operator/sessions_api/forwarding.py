"""Calls that reach a process which does not lead go on to the one that does.

The leader answers all but Watch, so that whoever made a session finds it, whichever process is
asked. The caller's own token goes along, over TLS to a server that our CA certifies: the leader
trusts nobody's word for who is calling.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import grpc

from cloister_api.cancelling import being_cancelled
from cloister_api.liveness import signs_of_life
from cloister_api.sessions.v1 import sessions_pb2_grpc
from cloister_api.wire import NOT_PACKED

from .. import names
from ..api.backend import Leadership
from ..metrics import SESSIONS_API_FORWARDED
from .status import CallError, Unavailable

FORWARDED: Final = "cloister-forwarded"
"""Metadata of a call that was forwarded once: it is not forwarded again."""
ANSWERED_ANYWAY: Final = frozenset({"Get", "List", "Renew"})
"""Methods that a process answers from its own mirror when nobody leads."""
RETRY_SECONDS: Final = 0.5
RETIRED_SECONDS: Final = 30.0
"""How long calls that are under way to a former leader may still take."""
_DETAILS: Final = "grpc-status-details-bin"
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.ssl_target_name_override", names.SESSIONS_SERVER_NAME),
    # A leader's node may have gone without a word.
    *signs_of_life(10, within=3),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    NOT_PACKED,
)
log = logging.getLogger(__name__)


class Relayed(CallError):
    """What the leader said, word for word."""

    def __init__(self, code: grpc.StatusCode, message: str, details: bytes) -> None:
        super().__init__("RELAYED", message)
        self.code = code
        self._details = details

    def status_details(self) -> bytes:
        return self._details


class Forwarder:
    """The way to the leader."""

    def __init__(self, leadership: Leadership, ca_pem: Callable[[], bytes]) -> None:
        """`ca_pem`: the CAs that are trusted at present."""
        self._leadership = leadership
        self._ca_pem = ca_pem
        self._address, self._trusted = "", b""
        self._channel: grpc.aio.Channel | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def call(self, method: str, request: Any, context: Any) -> Any:
        """The leader's answer; None when the call is to be answered here.

        Raises Relayed with the leader's refusal, and Unavailable when it has to be a leader that
        answers and none can be asked.
        """
        if self._leadership.leads():
            return None
        here = method in ANSWERED_ANYWAY
        metadata = dict(context.invocation_metadata() or ())
        leader = self._leadership.leader()
        if not leader or FORWARDED in metadata:
            SESSIONS_API_FORWARDED.labels(method, "no_leader").inc()
            if here:
                return None
            raise Unavailable(
                "NO_LEADER", "no operator leads at this moment; try again", RETRY_SECONDS
            )
        try:
            answer = await self._ask(leader, method, request, context, metadata)
        except Relayed:
            SESSIONS_API_FORWARDED.labels(method, "answered").inc()
            raise
        except _Lost as error:
            SESSIONS_API_FORWARDED.labels(method, "lost").inc()
            log.info("%s: the leader at %s did not answer: %s", method, leader, error)
            if here:
                return None
            raise Unavailable(
                "LEADER_LOST",
                "the operator that leads did not answer; repeat the call under its request id",
                RETRY_SECONDS,
            ) from None
        SESSIONS_API_FORWARDED.labels(method, "answered").inc()
        return answer

    async def close(self) -> None:
        """Close the way; calls under way fail."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        for each in list(self._retiring):
            each.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _ask(
        self, leader: str, method: str, request: Any, context: Any, metadata: dict[str, Any]
    ) -> Any:
        stub: Any = sessions_pb2_grpc.SessionsStub(self._to(leader))
        passed = [(FORWARDED, "1")]
        if "authorization" in metadata:
            passed.append(("authorization", metadata["authorization"]))
        try:
            return await getattr(stub, method)(
                request, metadata=passed, timeout=context.time_remaining()
            )
        except grpc.aio.AioRpcError as error:
            trailing = dict(error.trailing_metadata() or ())
            details = trailing.get(_DETAILS, b"")
            if not details and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                # Not the leader's own word, but its connection's.
                raise _Lost(f"{error.code().name}: {error.details()}") from None
            raise Relayed(error.code(), error.details() or "", details) from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            # The channel was closed under the call.
            raise _Lost("the connection was given up") from None

    def _to(self, leader: str) -> grpc.aio.Channel:
        trusted = self._ca_pem()
        if self._channel is None or (leader, trusted) != (self._address, self._trusted):
            if self._channel is not None:
                retiring = asyncio.create_task(self._channel.close(RETIRED_SECONDS))
                self._retiring.add(retiring)
                retiring.add_done_callback(self._retiring.discard)
            credentials = grpc.ssl_channel_credentials(trusted)
            self._channel = grpc.aio.secure_channel(leader, credentials, options=_OPTIONS)
            self._address, self._trusted = leader, trusted
        return self._channel


class _Lost(Exception):
    """The leader gave no answer of its own."""
