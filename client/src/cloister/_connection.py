"""The connection to one session's exec server: kept, repaired, its certificate renewed."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from cloister_api.cancelling import being_cancelled
from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ._channels import Link, open_channel
from ._errors import (
    CallError,
    CloisterError,
    OutcomeUnknownError,
    SessionEndedError,
    call_error,
    from_rpc,
    suspended,
)
from ._forward import Forward
from ._models import Credentials, SessionInfo
from ._server_info import ServerInfo
from ._sessions_api import SessionsApi
from ._silence import Lost

# For how long a call is repeated after the last sign of life.
RETRY_SECONDS = 30.0
_INFO_SECONDS = 10.0
# How gRPC words a broken connection when its status is neither UNAVAILABLE nor CANCELLED.
_BROKEN = re.compile(
    "RST_STREAM|GOAWAY|Stream removed|Connection reset|Broken pipe|Socket closed|Transport closed"
    "|Internal error from Core",  # sending on a stream that has just broken
    re.IGNORECASE,
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_RENEW_AGAIN_SECONDS = 30.0

T = TypeVar("T")


class Connection:
    """Connects at the first call.

    direct: whether pods are reachable from here, as they are inside the cluster.
    """

    def __init__(
        self,
        sessions: SessionsApi,
        info: SessionInfo,
        credentials: Credentials,
        *,
        direct: bool,
    ) -> None:
        self.info = info
        self.credentials = credentials
        self._sessions = sessions
        self._direct = direct
        self._lock = asyncio.Lock()
        self._link: Link | None = None
        self._bulk: Link | None = None
        self._links: set[Link] = set()
        self._renew_at = _renewal(credentials)
        self.closed = False
        """Whether `close` was called."""
        self.known_boot_id = ""
        """Of the server that answered last when it was asked; empty before."""
        self._server: ServerInfo | None = None
        """What that one said of itself, until a connection is lost."""

    async def run(
        self,
        attempt: Callable[[grpc.aio.Channel, Callable[[], None]], Awaitable[T]],
        *,
        bulk: bool = False,
        repeat: bool = True,
        once: bool = False,
    ) -> T:
        """Run a call that may be repeated, until it succeeds or fails for good.

        attempt: gets a channel, and a function to call at every sign of life. It may raise Lost.
        The rest, and what is raised: see `attempts`.
        """
        async for each in self.attempts(bulk=bulk, repeat=repeat, once=once):
            async with each:
                return await attempt(each.channel, each.alive)
        raise AssertionError("attempts end with a result or an error")

    def attempts(
        self, *, bulk: bool = False, repeat: bool = True, once: bool = False
    ) -> "Attempts":
        """Attempts of one call: `async for` each of them, `async with` it, return when it is done.

        bulk: it moves many bytes, over a connection of its own so that small calls do not wait.
        repeat: whether a lost connection is followed by another attempt. once: it starts something
        under an id that only the server of the first attempt knows, so another server must not get
        it; then OutcomeUnknownError is raised.
        Raises SessionEndedError when the session is over, NotFoundError when it is gone, and the
        CallError of the last attempt when the server was not reached for RETRY_SECONDS.
        """
        return Attempts(self, bulk=bulk, repeat=repeat, once=once)

    async def boot_id(self, channel: grpc.aio.Channel) -> str:
        """The id of the server that answers: another one has none of this one's state."""
        return (await self._ask(channel)).boot_id

    async def server(self) -> ServerInfo:
        """What the exec server says of itself; asked once, and again after a lost connection."""
        if self._server is not None:
            return self._server
        return await self.run(lambda channel, _: self._ask(channel))

    async def require(self, capability: str) -> None:
        """Raise UnimplementedError unless the exec server has this optional feature."""
        (await self.server()).require(capability)

    async def _ask(self, channel: grpc.aio.Channel) -> ServerInfo:
        stub: Any = exec_pb2_grpc.RuntimeStub(channel)
        try:
            info = await stub.Info(exec_pb2.InfoRequest(), timeout=_INFO_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Lost("the exec server does not answer") from None
            raise
        self._server = ServerInfo.from_proto(info)
        self.known_boot_id = info.boot_id
        return self._server

    def forget_server(self) -> None:
        """A connection was lost: the next server may be another."""
        self._server = None

    @contextlib.asynccontextmanager
    async def reach(self) -> AsyncIterator[str]:
        """A host:port that leads to the exec server, for as long as the context lasts."""
        if self._direct:
            yield self.info.endpoint
            return
        forward = self._new_forward()
        try:
            yield await forward.start()
        finally:
            await forward.close()

    async def close(self) -> None:
        """Close all connections; running calls fail with CANCELLED."""
        self.closed = True
        self._link = self._bulk = None
        links, self._links = self._links, set()
        for each in links:
            await each.close()

    async def use(self, *, bulk: bool) -> Link:
        """A connection, made when there is none; to be given back with `release`."""
        async with self._lock:
            if self.closed:
                raise closed_error()
            if time.monotonic() >= self._renew_at:
                await self._renew()
            link = self._bulk if bulk else self._link
            if link is None or link.retired:
                link = await self._connect()
                self._links.add(link)
                if bulk:
                    self._bulk = link
                else:
                    self._link = link
            link.users += 1
            return link

    def is_loss(self, error: CallError) -> bool:
        """Whether a call failed because its connection did, and not by the server's own word."""
        if error.code is grpc.StatusCode.UNAVAILABLE:
            return True
        if error.reason or self.closed:
            return False
        # Our own cancellation raises CancelledError: this one came from the other side. A deadline
        # is what we grant a call that answers soon: the server takes none for itself.
        if error.code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
            return True
        broken = error.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        return broken and _BROKEN.search(str(error)) is not None

    async def release(self, link: Link) -> None:
        """One user of the connection less."""
        link.users -= 1
        await link.close_if_unused()
        if link.retired and not link.users:
            self._links.discard(link)

    async def _connect(self) -> Link:
        forward = None
        address = self.info.endpoint
        if not self._direct:
            forward = self._new_forward()
            address = await forward.start()
        own = self.credentials
        channel = open_channel(
            address,
            self.info.server_name,
            own.ca_pem,
            own.certificate_pem,
            own.private_key_pem,
            keepalive=True,
        )
        return Link(channel, forward)

    def _new_forward(self) -> Forward:
        namespace, name = self.info.namespace, self.info.name
        return Forward(lambda: self._sessions.relay(namespace, name), f"session {namespace}/{name}")

    async def _renew(self) -> None:
        """Get a new certificate; calls under way go on over the old connection."""
        try:
            renewed = await self._sessions.renew(self.info.namespace, self.info.name)
        except CloisterError:
            if datetime.now(UTC) >= self.credentials.expires_at:
                raise
            # The one at hand still works: try again later rather than fail a call now.
            self._renew_at = time.monotonic() + _RENEW_AGAIN_SECONDS
            return
        self.credentials = Credentials.from_proto(renewed)
        self._renew_at = _renewal(self.credentials)
        await self._retire()

    async def require_alive(self) -> None:
        """Raise when the session is over, suspended or gone; no answer proves nothing."""
        mine = self.info
        try:
            found = SessionInfo.from_proto(
                await self._sessions.get(mine.namespace, mine.name, retry=False)
            )
        except CallError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                raise
            return
        except CloisterError:
            return
        if found.uid != mine.uid:
            raise call_error(
                grpc.StatusCode.NOT_FOUND,
                f"session {mine.name} is gone; another one has its name now",
            )
        if found.ended:
            raise SessionEndedError(found.name, found.phase, found.reason, found.message)
        if found.suspended:
            raise suspended(found.name, found.message)
        if found.endpoint and found.endpoint != mine.endpoint:
            # A new sandbox on the same workspace; calls tell by its boot id that it is another.
            self.info, self.known_boot_id = found, ""
            await self._retire()

    async def _retire(self) -> None:
        """Let calls under way finish on their connections, and begin new ones on new ones."""
        retired = [each for each in (self._link, self._bulk) if each is not None]
        self._link = self._bulk = None
        for old in retired:
            old.retired = True
            await old.close_if_unused()
            if not old.users:
                self._links.discard(old)


def closed_error() -> CallError:
    """The error for a call on, or during the end of, a session object."""
    return call_error(grpc.StatusCode.CANCELLED, "the session object is closed")


def _renewal(credentials: Credentials) -> float:
    """When to renew, on the monotonic clock: two thirds of what is left of its life."""
    left = (credentials.expires_at - datetime.now(UTC)).total_seconds()
    return time.monotonic() + max(0.0, left) * 2 / 3


class Attempts:
    """The attempts of one call; see Connection.attempts."""

    def __init__(self, connection: Connection, *, bulk: bool, repeat: bool, once: bool) -> None:
        self._connection = connection
        self._bulk = bulk
        self._repeat = repeat
        self._once = once
        self._boot_id = ""
        self._heard = time.monotonic()
        self._broke = False
        """Whether a connection broke since the last sign of life."""
        self._wait = _FIRST_PAUSE
        self.failed: CallError | None = None
        """What the last attempt failed with."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "Attempt":
        while True:
            if self.failed is not None:
                await self._pause(self.failed)
            if not self._once or await self._is_same_server():
                return await self._attempt()

    def alive(self) -> None:
        """The server gave a sign of life."""
        self._heard, self._wait, self._broke = time.monotonic(), _FIRST_PAUSE, False

    def broke(self) -> None:
        """A connection broke, through which keepalive had heard of the server until then.

        That counts as a sign of life: the call may have been at work for longer than it is
        repeated. Without another one it counts once, or a call could be cut for ever.
        """
        if not self._broke:
            self.alive()
            self._broke = True

    async def _attempt(self) -> "Attempt":
        link = await self._connection.use(bulk=self._bulk)
        self.failed = None
        return Attempt(self._connection, self, link)

    async def _pause(self, failed: CallError) -> None:
        if not self._repeat:
            raise failed
        await self._connection.require_alive()
        if time.monotonic() + self._wait - self._heard > RETRY_SECONDS:
            raise failed
        await asyncio.sleep(self._wait)
        self._wait = min(2 * self._wait, _LONGEST_PAUSE)

    async def _is_same_server(self) -> bool:
        """Whether another attempt may be made; False when the server was not reached."""
        if not self._boot_id and self._connection.known_boot_id:
            self._boot_id = self._connection.known_boot_id
            return True
        answered = ""
        async with await self._attempt() as attempt:
            answered = await self._connection.boot_id(attempt.channel)
        if not answered:
            return False
        if self._boot_id and answered != self._boot_id:
            raise OutcomeUnknownError(
                "the exec server was started anew, and whether the call ran before is not known"
            )
        self._boot_id = answered
        return True


class Attempt:
    """One attempt; as a context it takes the loss of the connection, and nothing else."""

    def __init__(self, connection: Connection, attempts: Attempts, link: Link) -> None:
        self._connection = connection
        self._attempts = attempts
        self._link = link
        self.channel = link.channel
        self.alive = attempts.alive
        """To be called at every sign of life."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            if isinstance(error, asyncio.CancelledError) and not being_cancelled():
                if self._connection.closed:
                    raise closed_error() from None
                self._attempts.broke()
                error = Lost("the connection to the exec server broke")
            if not isinstance(error, grpc.aio.AioRpcError | Lost):
                return False
            if isinstance(error, Lost):
                self._link.retired = True
                failed = call_error(grpc.StatusCode.UNAVAILABLE, str(error))
            else:
                forward = self._link.forward
                failed = from_rpc(error, forward.problem if forward else "")
                if not self._connection.is_loss(failed):
                    raise failed from None
                if failed.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._attempts.broke()
                # Where gRPC itself does not speak of a lost connection it may go on using it.
                self._link.retired |= failed.code is not grpc.StatusCode.UNAVAILABLE
            self._attempts.failed = failed
            self._connection.forget_server()
            return True
        finally:
            await self._connection.release(self._link)
