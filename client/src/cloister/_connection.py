"""The connection to one session's exec server: kept, repaired, its certificate renewed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import grpc

from ._channels import open_channel
from ._errors import CallError, CloisterError, SessionEndedError, call_error, from_rpc
from ._forward import Forward
from ._kube import Kube
from ._models import Credentials, SessionInfo
from ._sessions_api import SessionsApi

PORT = 7443
# For how long a call is repeated after the last sign of life.
RETRY_SECONDS = 30.0
# A call that says nothing for so long has lost its connection: the server reports every 5 s.
SILENCE_SECONDS = 20.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_RENEW_AGAIN_SECONDS = 30.0

T = TypeVar("T")


class Lost(Exception):
    """The connection died without a word, or a stream ended without its last message."""


class _Link:
    """A channel with its users: it closes when it is retired and the last of them is done."""

    def __init__(self, channel: grpc.aio.Channel, forward: Forward | None) -> None:
        self.channel = channel
        self.forward = forward
        self.users = 0
        self.retired = False

    async def close_if_unused(self) -> None:
        if self.retired and not self.users:
            await self.close()

    async def close(self) -> None:
        await self.channel.close()
        if self.forward is not None:
            await self.forward.close()


class Connection:
    """Connects at the first call.

    direct: whether pods are reachable from here, as they are inside the cluster.
    """

    def __init__(
        self,
        kube: Kube,
        sessions: SessionsApi,
        info: SessionInfo,
        credentials: Credentials,
        *,
        direct: bool,
    ) -> None:
        self.info = info
        self.credentials = credentials
        self._kube = kube
        self._sessions = sessions
        self._direct = direct
        self._lock = asyncio.Lock()
        self._link: _Link | None = None
        self._bulk: _Link | None = None
        self._links: set[_Link] = set()
        self._closed = False
        self._renew_at = _renewal(credentials)

    async def run(
        self,
        attempt: Callable[[grpc.aio.Channel, Callable[[], None]], Awaitable[T]],
        *,
        bulk: bool = False,
    ) -> T:
        """Run a call that may be repeated, until it succeeds or fails for good.

        attempt: gets a channel, and a function to call at every sign of life. It may raise Lost.
        bulk: it moves many bytes, over a connection of its own so that small calls do not wait.
        Raises SessionEndedError when the session is over, NotFoundError when it is gone, and the
        CallError of the last attempt when the server was not reached for RETRY_SECONDS.
        """
        heard = time.monotonic()
        pause = _FIRST_PAUSE

        def alive() -> None:
            nonlocal heard, pause
            heard, pause = time.monotonic(), _FIRST_PAUSE

        while True:
            link = await self._use(bulk=bulk)
            try:
                return await attempt(link.channel, alive)
            except grpc.aio.AioRpcError as error:
                failed: CallError = from_rpc(error, link.forward.problem if link.forward else "")
            except Lost as lost:
                failed = call_error(grpc.StatusCode.UNAVAILABLE, str(lost))
                link.retired = True
            finally:
                await self._release(link)
            if failed.code is not grpc.StatusCode.UNAVAILABLE:
                raise failed
            await self._require_alive()
            if time.monotonic() + pause - heard > RETRY_SECONDS:
                raise failed
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

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
        self._closed = True
        self._link = self._bulk = None
        links, self._links = self._links, set()
        for each in links:
            await each.close()

    async def _use(self, *, bulk: bool) -> _Link:
        async with self._lock:
            if self._closed:
                raise call_error(grpc.StatusCode.CANCELLED, "the session object is closed")
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

    async def _release(self, link: _Link) -> None:
        link.users -= 1
        await link.close_if_unused()
        if link.retired and not link.users:
            self._links.discard(link)

    async def _connect(self) -> _Link:
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
        return _Link(channel, forward)

    def _new_forward(self) -> Forward:
        async def pod() -> str:
            return self.info.pod_name

        return Forward(self._kube, self.info.namespace, pod, PORT)

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
        retired = [each for each in (self._link, self._bulk) if each is not None]
        self._link = self._bulk = None
        for old in retired:
            old.retired = True
            await old.close_if_unused()
            if not old.users:
                self._links.discard(old)

    async def _require_alive(self) -> None:
        """Raise when the session is over or gone; no answer proves nothing."""
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


def _renewal(credentials: Credentials) -> float:
    """When to renew, on the monotonic clock: two thirds of what is left of its life."""
    left = (credentials.expires_at - datetime.now(UTC)).total_seconds()
    return time.monotonic() + max(0.0, left) * 2 / 3


async def watched(stream: AsyncIterable[T]) -> AsyncIterator[T]:
    """The messages of a call; raises Lost when none comes for SILENCE_SECONDS."""
    messages = aiter(stream)
    while True:
        try:
            message = await asyncio.wait_for(anext(messages), SILENCE_SECONDS)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Lost("the exec server fell silent") from None
        yield message
