"""The calls that the operator makes to exec servers."""

import asyncio
import functools
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_api.turns import turn

from .. import names
from ..api import conditions
from ..api.backend import NewFile
from ..errors import ConflictError, LostError, PermanentError, TransientError
from ..identity import Authority, Identity
from . import answers
from .answers import Activity, SandboxFailed, SandboxInfo, SandboxState, Unreachable, clean
from .links import MAX_LINKS, MAX_REQUEST, Links, PodAddress, accepts

CALL_SECONDS = 5.0
CONNECT_SECONDS = 0.25
"""One attempt: while a pod's network is being set up, a lost SYN would cost a second."""
FIRST_PAUSE, LONGEST_PAUSE = 0.015, 0.25
GROWTH = 1.15
"""Of the pauses: a pod is found within a seventh of the time that it took to answer."""
DIALS = 64
"""Attempts at pods that are not usable yet, at a time, for pools and for sessions each: where some
hundred start at once, each would wait for the handshakes of all others, and for longer than it may.
"""
DIAL_TURN_SECONDS = 0.5
"""Of an attempt, until the next one begins beside it: pods that never answer keep no others."""
PROBE_SECONDS = 1.0
"""For each connection that a pod tries."""
ASK_SECONDS = 75.0
"""For package managers to say where they get their packages: some take seconds to start."""
DELIVER_SECONDS = 300.0
"""For the files of one repository."""
_FRAME = 512 * 1024
_OF_THE_DISK = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class ClaimPayload:
    """What a pod gets with its claim; `identity` is the session's server certificate."""

    session_uid: str
    session_name: str
    identity: Identity
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Sequence[NewFile] = field(default=(), repr=False)


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
        self._links = Links(authority, clock, max_links)
        self._for_pools, self._for_sessions = asyncio.Semaphore(DIALS), asyncio.Semaphore(DIALS)

    async def wait_warm(
        self, pod: PodAddress, deadline: float, session_uid: str = ""
    ) -> SandboxInfo:
        """Dial until the pod is warm, until `deadline` (of the event loop's clock).

        A pod that awaits files, or to be proven, is an answer, too. With `session_uid`, so is a pod
        that this session has claimed already (state CLAIMED): that is how a claim goes on whose
        reply was lost.
        Raises SandboxFailed when the pod reports failure, TransientError when the time is over.
        """
        turns = self._for_sessions if session_uid else self._for_pools
        pause, problem = FIRST_PAUSE, "it was not dialed"
        loop = asyncio.get_running_loop()
        while deadline > loop.time():
            async with turn(turns, DIAL_TURN_SECONDS):
                info, problem = await self._look(pod, deadline - loop.time(), session_uid)
            if info is not None:
                return info
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
            pause = min(pause * GROWTH, LONGEST_PAUSE)
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
        reached = set(answer.reachable)
        if not reached <= set(targets):
            raise answers.misbehaves(
                pod.name, "it says that it reached what it was not asked to reach"
            )
        return [each for each in targets if each in reached]

    async def deliver(self, pod: PodAddress, path: str, archive: Path) -> None:
        """Unpack a tar archive into a directory whose files the unclaimed pod awaits.

        Raises SandboxFailed where they cannot be placed, TransientError.
        """

        async def call(channel: grpc.aio.Channel) -> exec_pb2.Entry:
            stub: exec_pb2_grpc.FilesAsyncStub = exec_pb2_grpc.FilesStub(channel)
            frames = _frames(path, archive)
            try:
                return await stub.Upload(frames, timeout=DELIVER_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() in _OF_THE_DISK:
                    said = clean(error.details() or "")
                    raise SandboxFailed(
                        conditions.SETUP_FAILED, f"the files of {path} cannot be placed: {said}"
                    ) from None
                raise

        await self._on(pod, names.pod_server_name(pod.uid), call)

    async def package_sources(self, pod: PodAddress) -> list[tuple[str, list[str]]]:
        """Where the unclaimed pod's package managers get their packages: URLs by manager, in the
        pod's own words.
        """
        request = exec_pb2.PackageSourcesRequest()
        answer = await self._call(
            pod,
            names.pod_server_name(pod.uid),
            lambda stub: stub.PackageSources(request, timeout=ASK_SECONDS),
        )
        return answers.package_sources(pod.name, answer)

    async def prepare(self, pod: PodAddress) -> None:
        """Let the setup script of an unclaimed pod run: its network is closed."""
        await self._call(
            pod,
            names.pod_server_name(pod.uid),
            lambda stub: stub.Prepare(exec_pb2.PrepareRequest(), timeout=CALL_SECONDS),
        )

    async def claim(self, pod: PodAddress, claim: ClaimPayload) -> bool:
        """Give the pod to a session; claiming it again for the same session changes nothing.

        The answer is whether it says that the session had it already.

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
                conditions.SESSION_TOO_LARGE,
                f"files and variables exceed {MAX_REQUEST} bytes",
                "spec.files",
            )
        call = functools.partial(_claim, request)
        try:
            answer = await self._call(pod, names.pod_server_name(pod.uid), call)
        except Unreachable as first:
            # A pod that was claimed before shows the session's certificate by now.
            try:
                answer = await self._call(pod, names.session_server_name(claim.session_uid), call)
            except Unreachable:
                raise first from None
        self.forget(pod.uid)
        return answer.replayed

    async def activity(self, pod: PodAddress, session_uid: str) -> Activity:
        """What happens in a claimed pod."""
        answer = await self._call(
            pod,
            names.session_server_name(session_uid),
            lambda stub: stub.Activity(exec_pb2.ActivityRequest(), timeout=CALL_SECONDS),
        )
        return answers.activity(pod.name, answer)

    async def drain(self, pod: PodAddress, session_uid: str, grace: timedelta) -> None:
        """Let calls in a claimed pod finish within `grace`, and refuse new ones."""
        request = exec_pb2.DrainRequest()
        request.grace.FromTimedelta(grace)
        seconds = grace.total_seconds() + CALL_SECONDS
        await self._call(
            pod,
            names.session_server_name(session_uid),
            lambda stub: stub.Drain(request, timeout=seconds),
        )

    async def trust(self, pod: PodAddress, session_uid: str, ca_pem: bytes) -> None:
        """Let the exec server accept callers that these CAs certify, and no others.

        `session_uid`: whose the pod is, or is about to be; empty for nobody's.
        """
        request = exec_pb2.TrustRequest(ca_pem=ca_pem)

        async def call(stub: "exec_pb2_grpc.RuntimeAsyncStub") -> exec_pb2.TrustResponse:
            return await stub.Trust(request, timeout=CALL_SECONDS)

        try:
            name = session_uid and names.session_server_name(session_uid)
            await self._call(pod, name or names.pod_server_name(pod.uid), call)
        except Unreachable:
            if not session_uid:
                raise
            # The label comes before the claim of the exec server.
            await self._call(pod, names.pod_server_name(pod.uid), call)

    def connected(self, pod_uid: str) -> bool:
        """Whether a call to the pod would find its channel open."""
        return pod_uid in self._links

    def forget(self, pod_uid: str) -> None:
        """Close the pod's channel, if there is one; calls under way fail as LostError."""
        self._links.forget(pod_uid)

    async def aclose(self) -> None:
        """Close every channel."""
        await self._links.aclose()

    async def _look(
        self, pod: PodAddress, seconds: float, session_uid: str
    ) -> tuple[SandboxInfo | None, str]:
        """What `wait_warm` waits for, or why it is not there yet."""
        if pod.uid not in self._links and not await accepts(pod, min(CONNECT_SECONDS, seconds)):
            return None, f"its port {pod.port} does not answer"
        expected = [names.pod_server_name(pod.uid)]
        if session_uid:
            expected.append(names.session_server_name(session_uid))
        problem = ""
        for server_name in expected:
            try:
                info = await self._info(pod, server_name, min(CALL_SECONDS, seconds))
            except TransientError as error:
                problem = str(error)
                continue
            awaits = info.awaits or info.awaits_proof
            if info.state is SandboxState.WARM or (info.state is SandboxState.PREPARING and awaits):
                return info, ""
            if session_uid and info.session_uid == session_uid:
                return info, ""
            if info.state is SandboxState.FAILED:
                raise SandboxFailed(
                    conditions.SETUP_FAILED, info.problem or "the sandbox could not be prepared"
                )
            return None, f"it is {info.state}"
        return None, problem

    async def _info(self, pod: PodAddress, server_name: str, seconds: float) -> SandboxInfo:
        answer = await self._call(
            pod, server_name, lambda stub: stub.Info(exec_pb2.InfoRequest(), timeout=seconds)
        )
        return answers.info(pod.name, answer)

    async def _call(
        self,
        pod: PodAddress,
        server_name: str,
        call: Callable[["exec_pb2_grpc.RuntimeAsyncStub"], Awaitable[_Answer]],
    ) -> _Answer:
        return await self._on(
            pod, server_name, lambda channel: call(exec_pb2_grpc.RuntimeStub(channel))
        )

    async def _on(
        self,
        pod: PodAddress,
        server_name: str,
        call: Callable[[grpc.aio.Channel], Awaitable[_Answer]],
    ) -> _Answer:
        with self._links.use(pod, server_name) as link:
            try:
                return await call(link.channel)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    # The next attempt dials at once instead of waiting for gRPC's own backoff.
                    self._links.forget(pod.uid, link)
                raise answers.failure(pod.name, error) from None


async def _frames(path: str, archive: Path) -> AsyncIterator[exec_pb2.UploadFrame]:
    yield exec_pb2.UploadFrame(start=exec_pb2.UploadStart(path=path, tree=True))
    size = crc = 0
    with await asyncio.to_thread(archive.open, "rb") as file:
        while data := await asyncio.to_thread(file.read, _FRAME):
            size, crc = size + len(data), zlib.crc32(data, crc)
            yield exec_pb2.UploadFrame(data=data)
    yield exec_pb2.UploadFrame(end=exec_pb2.UploadEnd(size=size, crc32=crc))


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
            raise PermanentError(
                conditions.SESSION_REFUSED, f"the sandbox refuses: {said}"
            ) from None
        raise
