"""The only module that dials exec servers.

Code in a sandbox owns the sandbox: whatever a pod answers is bounded, checked and cleaned here
before anything else of the operator sees it.
"""

import asyncio
import contextlib
import functools
import ipaddress
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from . import names
from .api.backend import NewFile
from .errors import ConflictError, LostError, PermanentError, TransientError
from .identity import OPERATOR_LIFETIME, Authority, Identity

CALL_SECONDS = 5.0
CONNECT_SECONDS = 0.25
"""One attempt: while a pod's network is being set up, a lost SYN would cost a second."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
PROBE_SECONDS = 1.0
"""For each connection that a pod tries."""
MAX_ANSWER = 64 * 1024
"""Bytes of one answer."""
MAX_REQUEST = 32 * 1024 * 1024
"""Bytes; what the exec server accepts."""
MAX_LINKS = 4096
"""Open channels; the one used longest ago is closed for a new one."""
_TEXT = 1024
_IDENTIFIER = 128
_LONGEST = timedelta(days=3650)
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_ANSWER),
    ("grpc.max_send_message_length", MAX_REQUEST),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # A node that dies takes the connection along without a word.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
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
)
_Answer = TypeVar("_Answer")


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


class SandboxState(StrEnum):
    """What an exec server says of itself."""

    PREPARING = "preparing"
    WARM = "warm"
    CLAIMED = "claimed"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class SandboxInfo:
    """An exec server's answer to Info, cleaned."""

    state: SandboxState
    version: str
    api_generation: int
    boot_id: str
    session_uid: str
    problem: str


@dataclass(frozen=True)
class Activity:
    """What happens in a claimed pod, as the pod says: never negative, otherwise untrusted."""

    idle_for: timedelta
    active: timedelta
    running_calls: int


@dataclass(frozen=True)
class ClaimPayload:
    """What a pod gets with its claim; `identity` is the session's server certificate."""

    session_uid: str
    session_name: str
    identity: Identity
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Sequence[NewFile] = field(default=(), repr=False)


class SandboxFailed(PermanentError):
    """This pod will not serve any session.

    Reason `SetupFailed`: its files or its setup script failed, the sentence says how.
    Reason `SandboxMisbehaves`: it answers what no exec server answers.
    """


class _Unreachable(TransientError):
    """No exec server of the expected name answers there."""


_STATES = {
    exec_pb2.RuntimeInfo.STATE_PREPARING: SandboxState.PREPARING,
    exec_pb2.RuntimeInfo.STATE_WARM: SandboxState.WARM,
    exec_pb2.RuntimeInfo.STATE_CLAIMED: SandboxState.CLAIMED,
    exec_pb2.RuntimeInfo.STATE_DRAINING: SandboxState.DRAINING,
    exec_pb2.RuntimeInfo.STATE_FAILED: SandboxState.FAILED,
}


@dataclass
class _Link:
    """A channel and what it was made for; any difference asks for a new one."""

    server_name: str
    endpoint: str
    identity: Identity
    channel: grpc.aio.Channel
    calls: int = 0
    closed: bool = False


class Sandboxes:
    """Calls to exec servers, over one channel per pod.

    Until the claim a channel expects the pod's certificate, afterwards the session's. Errors:
    TransientError where the pod cannot be reached or is not the pod expected (its address may
    belong to another by now), LostError when a claim's outcome is unknown, ConflictError when
    another session owns the pod, SandboxFailed for a pod that can never serve.
    """

    def __init__(
        self,
        authority: Authority,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_links: int = MAX_LINKS,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._max_links = max_links
        self._links: OrderedDict[str, _Link] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._identity: Identity | None = None

    async def wait_warm(
        self, pod: PodAddress, deadline: float, session_uid: str = ""
    ) -> SandboxInfo:
        """Dial until the pod is warm, until `deadline` (of time.monotonic()).

        With `session_uid`, a pod that this session has claimed already is an answer too (state
        CLAIMED): that is how a claim goes on whose reply was lost. Raises SandboxFailed when the
        pod reports failure, TransientError when the time is over.
        """
        expected = [names.pod_server_name(pod.uid)]
        if session_uid:
            expected.append(names.session_server_name(session_uid))
        pause, problem = FIRST_PAUSE, "it was not dialed"
        while (remaining := deadline - time.monotonic()) > 0:
            if pod.uid in self._links or await _accepts(pod, min(CONNECT_SECONDS, remaining)):
                for server_name in expected:
                    try:
                        info = await self._info(pod, server_name, min(CALL_SECONDS, remaining))
                    except TransientError as error:
                        problem = str(error)
                        continue
                    if info.state is SandboxState.WARM:
                        return info
                    if session_uid and info.session_uid == session_uid:
                        return info
                    if info.state is SandboxState.FAILED:
                        problem = info.problem or "the sandbox could not be prepared"
                        raise SandboxFailed("SetupFailed", problem)
                    problem = f"it is {info.state}"
                    break
            else:
                problem = f"its port {pod.port} does not answer"
            await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 1.5, LONGEST_PAUSE)
        raise TransientError(f"pod {pod.name} was not ready in time: {problem}")

    async def probe(self, pod: PodAddress, targets: Sequence[str]) -> list[str]:
        """Those of `targets` (host:port, literal addresses) that the unclaimed pod could reach."""
        request = exec_pb2.ProbeRequest(targets=targets)
        request.timeout.FromTimedelta(timedelta(seconds=PROBE_SECONDS))
        answer = await self._call(
            pod,
            names.pod_server_name(pod.uid),
            lambda stub: stub.Probe(request, timeout=PROBE_SECONDS + CALL_SECONDS),
        )
        if not set(answer.reachable) <= set(targets):
            raise _misbehaves(pod, "it says that it reached what it was not asked to reach")
        return [each for each in targets if each in set(answer.reachable)]

    async def claim(self, pod: PodAddress, claim: ClaimPayload) -> None:
        """Give the pod to a session; claiming it again for the same session changes nothing.

        Raises PermanentError when the pod refuses the session's files or variables (with the
        field), ConflictError when another session owns it, LostError when no answer came.
        """
        request = exec_pb2.ClaimRequest(
            session_uid=claim.session_uid,
            session_name=claim.session_name,
            pod_uid=pod.uid,
            certificate_pem=claim.identity.certificate_pem,
            private_key_pem=claim.identity.private_key_pem,
            env=claim.env,
            files=[
                exec_pb2.SessionFile(path=each.path, mode=each.mode, content=each.content)
                for each in claim.files
            ],
        )
        if request.ByteSize() > MAX_REQUEST:
            raise PermanentError(
                "SessionTooLarge", f"files and variables exceed {MAX_REQUEST} bytes", "spec.files"
            )
        call = functools.partial(_claim, request)
        try:
            await self._call(pod, names.pod_server_name(pod.uid), call)
        except _Unreachable as first:
            # A pod that was claimed before shows the session's certificate by now.
            try:
                await self._call(pod, names.session_server_name(claim.session_uid), call)
            except _Unreachable:
                raise first from None
        self.forget(pod.uid)

    async def activity(self, pod: PodAddress, session_uid: str) -> Activity:
        """What happens in a claimed pod."""
        answer = await self._call(
            pod,
            names.session_server_name(session_uid),
            lambda stub: stub.Activity(exec_pb2.ActivityRequest(), timeout=CALL_SECONDS),
        )
        return Activity(
            idle_for=_timedelta(pod, answer.idle_for),
            active=_timedelta(pod, answer.active),
            running_calls=answer.running_calls,
        )

    async def drain(self, pod: PodAddress, session_uid: str, grace: timedelta) -> None:
        """Let running calls end, for at most `grace`; new ones are refused."""
        request = exec_pb2.DrainRequest()
        request.grace.FromTimedelta(grace)
        seconds = grace / timedelta(seconds=1)
        await self._call(
            pod,
            names.session_server_name(session_uid),
            lambda stub: stub.Drain(request, timeout=seconds + CALL_SECONDS),
        )

    def forget(self, pod_uid: str) -> None:
        """Close the pod's channel, if there is one; calls under way fail as LostError."""
        link = self._links.pop(pod_uid, None)
        if link is not None:
            self._close(link)

    async def aclose(self) -> None:
        """Close every channel."""
        for pod_uid in list(self._links):
            self.forget(pod_uid)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _info(self, pod: PodAddress, server_name: str, seconds: float) -> SandboxInfo:
        answer = await self._call(
            pod, server_name, lambda stub: stub.Info(exec_pb2.InfoRequest(), timeout=seconds)
        )
        state = _STATES.get(answer.state)
        if state is None:
            raise _misbehaves(pod, "it reports a state that does not exist")
        return SandboxInfo(
            state=state,
            version=clean(answer.version, _IDENTIFIER),
            api_generation=answer.api_generation,
            boot_id=clean(answer.boot_id, _IDENTIFIER),
            session_uid=clean(answer.session_uid, _IDENTIFIER),
            problem=clean(answer.problem),
        )

    async def _call(
        self,
        pod: PodAddress,
        server_name: str,
        call: Callable[["exec_pb2_grpc.RuntimeAsyncStub"], Awaitable[_Answer]],
    ) -> _Answer:
        link = self._link(pod, server_name)
        link.calls += 1
        try:
            return await call(exec_pb2_grpc.RuntimeStub(link.channel))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and self._links.get(pod.uid) is link:
                # The next attempt dials at once instead of waiting for gRPC's own backoff.
                self.forget(pod.uid)
            raise _translate(pod, error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if link.closed and task is not None and not task.cancelling():
                # gRPC cancels the calls of a channel that is closed under them.
                raise LostError(f"the channel to pod {pod.name} was closed") from None
            raise
        finally:
            link.calls -= 1
            self._evict()

    def _link(self, pod: PodAddress, server_name: str) -> _Link:
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
            options=(*_OPTIONS, ("grpc.ssl_target_name_override", server_name)),
        )
        link = _Link(server_name, pod.endpoint, identity, channel)
        self._links[pod.uid] = link
        self._evict()
        return link

    def _evict(self) -> None:
        for pod_uid in list(self._links)[:-1]:
            if len(self._links) <= self._max_links:
                return
            if not self._links[pod_uid].calls:
                self.forget(pod_uid)

    def _own_identity(self) -> Identity:
        now = self._clock()
        # Renewed when a third of its time is left, so that no handshake meets an expired one.
        if self._identity is None or self._identity.not_after - now < OPERATOR_LIFETIME / 3:
            self._identity = self._authority.operator_client(now)
        return self._identity

    def _close(self, link: _Link) -> None:
        link.closed = True
        task = asyncio.ensure_future(_close_channel(link.channel))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def clean(text: str, limit: int = _TEXT) -> str:
    """Foreign text as one printable line of at most `limit` characters.

    Control, formatting and unassigned characters become spaces: they could forge lines in a log
    or turn a terminal's text around.
    """
    # The slice bounds the work before it is done.
    readable = "".join(
        " " if unicodedata.category(each)[0] in "CZ" else each for each in text[: 4 * limit]
    )
    line = " ".join(readable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


async def _claim(
    request: exec_pb2.ClaimRequest, stub: "exec_pb2_grpc.RuntimeAsyncStub"
) -> exec_pb2.ClaimResponse:
    try:
        return await stub.Claim(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        said = clean(error.details() or "")
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise LostError("the claim was not answered in time") from None
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            raise ConflictError(f"the pod refuses the claim: {said}") from None
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            raise PermanentError("SessionRefused", f"the sandbox refuses: {said}") from None
        raise


async def _accepts(pod: PodAddress, seconds: float) -> bool:
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


async def _close_channel(channel: grpc.aio.Channel) -> None:
    await channel.close()


def _translate(pod: PodAddress, error: grpc.aio.AioRpcError) -> Exception:
    said = clean(error.details() or "", 256)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return _Unreachable(f"pod {pod.name} cannot be called: {said}")
    return _misbehaves(pod, f"it answers {error.code().name}: {said}")


def _misbehaves(pod: PodAddress, what: str) -> SandboxFailed:
    return SandboxFailed("SandboxMisbehaves", f"pod {pod.name} does not behave: {what}")


def _timedelta(pod: PodAddress, given: Duration) -> timedelta:
    try:
        return min(max(given.ToTimedelta(), timedelta(0)), _LONGEST)
    except (ValueError, OverflowError):
        raise _misbehaves(pod, "it reports a time that cannot be") from None
