"""Channels to exec servers: one per pod, under the operator's own certificate."""

import asyncio
import contextlib
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import grpc

from cloister_api.cancelling import being_cancelled
from cloister_api.liveness import signs_of_life
from cloister_api.wire import NOT_PACKED

from .. import names
from ..errors import LostError
from ..identity import OPERATOR_LIFETIME, Authority, Identity

MAX_ANSWER = 64 * 1024
"""Bytes of one answer."""
MAX_REQUEST = 32 * 1024 * 1024
"""Bytes; what the exec server accepts."""
MAX_LINKS = 512
"""Open channels, of about 110 kB each; the one used longest ago is closed for a new one."""
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_REQUEST),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # A node that dies takes the connection along without a word.
    *signs_of_life(30, within=5),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A warm pod's connection stays open, however long it waits: a claim must not pay a handshake.
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),
    # Pods are dialed directly, whatever proxy the operator's environment names.
    ("grpc.enable_http_proxy", 0),
    # A channel with another expected name must make its own handshake.
    ("grpc.use_local_subchannel_pool", 1),
    NOT_PACKED,
)


@dataclass(frozen=True)
class PodAddress:
    """A pod to dial; `ip` must be an IP address."""

    name: str
    uid: str
    ip: str
    port: int = names.EXEC_PORT

    @property
    def endpoint(self) -> str:
        """host:port, with brackets around IPv6."""
        address = ipaddress.ip_address(self.ip)
        return f"[{address}]:{self.port}" if address.version == 6 else f"{address}:{self.port}"


@dataclass
class Link:
    """A channel and what it was made for; any difference asks for a new one."""

    server_name: str
    endpoint: str
    identity: Identity
    channel: grpc.aio.Channel
    calls: int = 0
    closed: bool = False


class Links:
    """The open channels by pod UID, bounded; none that is in use is closed for the bound's sake."""

    def __init__(
        self,
        authority: Authority,
        clock: Callable[[], datetime],
        max_links: int,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        """`max_links`: channels that stay open; `max_answer`: bytes of one answer."""
        self._authority = authority
        self._max_answer = max_answer
        self._clock = clock
        self._max_links = max_links
        self._links: OrderedDict[str, Link] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._identity: Identity | None = None
        self._signed = (b"", b"")
        """By whom, and which CAs were trusted then."""

    def __contains__(self, pod_uid: str) -> bool:
        return pod_uid in self._links

    @contextlib.contextmanager
    def use(self, pod: PodAddress, server_name: str) -> Iterator[Link]:
        """The pod's channel that expects this name, not closed for another while it is used.

        LostError when it is closed all the same, as `forget` and a new certificate do.
        """
        link = self._get(pod, server_name)
        link.calls += 1
        try:
            yield link
        except asyncio.CancelledError:
            if link.closed and not being_cancelled():
                # gRPC cancels the calls of a channel that is closed under them.
                raise LostError(f"the channel to pod {pod.name} was closed") from None
            raise
        finally:
            link.calls -= 1
            self._evict()

    def forget(self, pod_uid: str, link: Link | None = None) -> None:
        """Close the pod's channel, if there is one; with `link`, only if it is that one."""
        if link is not None and self._links.get(pod_uid) is not link:
            return
        found = self._links.pop(pod_uid, None)
        if found is not None:
            found.closed = True
            task = asyncio.ensure_future(_close(found.channel))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close every channel."""
        for pod_uid in list(self._links):
            self.forget(pod_uid)
        if self._closing:
            await asyncio.wait(self._closing)

    def _get(self, pod: PodAddress, server_name: str) -> Link:
        identity = self._own_identity()
        link = self._links.get(pod.uid)
        if link is not None:
            if (link.server_name, link.endpoint) == (server_name, pod.endpoint) and (
                link.identity is identity
            ):
                self._links.move_to_end(pod.uid)
                return link
            self.forget(pod.uid)
        channel = grpc.aio.secure_channel(
            pod.endpoint,
            grpc.ssl_channel_credentials(
                identity.ca_pem, identity.private_key_pem, identity.certificate_pem
            ),
            options=(
                *_OPTIONS,
                ("grpc.max_receive_message_length", self._max_answer),
                ("grpc.ssl_target_name_override", server_name),
            ),
        )
        link = self._links[pod.uid] = Link(server_name, pod.endpoint, identity, channel)
        self._evict()
        return link

    def _evict(self) -> None:
        if len(self._links) <= self._max_links:
            return
        for pod_uid in list(self._links)[:-1]:
            if not self._links[pod_uid].calls:
                self.forget(pod_uid)
            if len(self._links) <= self._max_links:
                return

    def _own_identity(self) -> Identity:
        now = self._clock()
        # Renewed when a third of its time is left, so that no handshake meets an expired one.
        signed = self._authority.issuer_pem, self._authority.ca_pem
        if (
            self._identity is None
            or self._signed != signed
            or self._identity.not_after - now < OPERATOR_LIFETIME / 3
        ):
            self._identity, self._signed = self._authority.operator_client(now), signed
        return self._identity


async def accepts(pod: PodAddress, seconds: float) -> bool:
    """Whether the port takes connections: far cheaper to ask than a TLS handshake."""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(pod.ip, pod.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def _close(channel: grpc.aio.Channel) -> None:
    await channel.close()
