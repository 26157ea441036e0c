"""cloister.exec.v1.Runtime."""

import asyncio
import base64
import contextlib
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ..config import API_GENERATION, VERSION, Config
from ..errors import InvalidField, Unavailable, WrongState
from ..finishing import to_its_end
from ..handover import hand_over
from ..identity import KeyPair, ServerIdentity
from ..probing import accepts
from ..recipe import place
from ..shell import ShellError
from ..state import Activity, Phase, ServerState
from .common import require_length, unary
from .files import CAPABILITIES as FILES

CAPABILITIES = ("tools", "shells", "processes", "terminal", "recipe.trees", *FILES)
MAX_TARGETS = 16
MAX_PROBE_SECONDS = 5.0
MAX_BUNDLE = 64 * 1024
"""Bytes of CAs."""
_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----"
)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STATES = {
    Phase.PREPARING: exec_pb2.RuntimeInfo.STATE_PREPARING,
    Phase.WARM: exec_pb2.RuntimeInfo.STATE_WARM,
    Phase.CLAIMED: exec_pb2.RuntimeInfo.STATE_CLAIMED,
    Phase.DRAINING: exec_pb2.RuntimeInfo.STATE_DRAINING,
    Phase.FAILED: exec_pb2.RuntimeInfo.STATE_FAILED,
}
log = logging.getLogger(__name__)


class RuntimeService(exec_pb2_grpc.RuntimeServicer):
    """Identity, claim, network probe, activity and drain."""

    def __init__(
        self,
        config: Config,
        state: ServerState,
        identity: ServerIdentity,
        activity: Activity,
        drain: Callable[[float], Awaitable[None]],
        ask: Callable[[], Coroutine[Any, Any, list[tuple[str, str]]]],
    ) -> None:
        self._config = config
        self._state = state
        self._identity = identity
        self._activity = activity
        self._drain = drain
        self._ask = ask
        self._asking = asyncio.Lock()
        self._sources: list[tuple[str, str]] | None = None
        self._claiming = asyncio.Lock()

    @unary
    async def Info(self, request: exec_pb2.InfoRequest, context: Any) -> Any:  # noqa: ARG002, N802
        return exec_pb2.RuntimeInfo(
            version=VERSION,
            api_generation=API_GENERATION,
            capabilities=CAPABILITIES,
            boot_id=self._state.boot_id,
            state=_STATES[self._state.phase],
            problem=self._state.problem if self._state.phase is Phase.FAILED else "",
            session_uid=self._state.session_uid,
            uid_map=_uid_map(),
            awaits=sorted(self._state.awaits),
            awaits_proof=self._state.awaits_proof,
        )

    @unary
    async def Claim(self, request: exec_pb2.ClaimRequest, context: Any) -> Any:  # noqa: ARG002, N802
        require_length("session_uid", request.session_uid, 128)
        _check_claim(request)
        async with self._claiming:
            if self._state.session_uid:
                if self._state.session_uid != request.session_uid:
                    raise WrongState("CLAIMED", "another session owns this pod")
                return exec_pb2.ClaimResponse(boot_id=self._state.boot_id, replayed=True)
            if request.pod_uid != self._config.pod_uid:
                raise WrongState("WRONG_POD", "pod_uid is not the UID of this pod")
            if self._state.phase is not Phase.WARM:
                raise Unavailable("NOT_WARM", f"this pod is {self._state.phase.value}")
            for each in request.files:
                try:
                    await asyncio.to_thread(place, each.path, each.mode or 0o644, each.content)
                except OSError as error:
                    raise InvalidField("files", f"{each.path}: {error.strerror}") from None
            await hand_over(self._config.listen, lambda: self._claim(request))
        log.info("claimed by session %s", request.session_name)
        return exec_pb2.ClaimResponse(boot_id=self._state.boot_id)

    def _claim(self, request: exec_pb2.ClaimRequest) -> None:
        """All of it or, when the caller goes away before, or the pod is ending by now, nothing."""
        if self._state.phase is not Phase.WARM:
            raise Unavailable("NOT_WARM", f"this pod is {self._state.phase.value}")
        self._identity.replace(KeyPair(request.certificate_pem, request.private_key_pem))
        self._state.environment.update(request.env)
        self._state.session_uid = request.session_uid
        self._state.phase = Phase.CLAIMED
        self._activity.reset()

    @unary
    async def Prepare(self, request: exec_pb2.PrepareRequest, context: Any) -> Any:  # noqa: ARG002, N802
        self._state.proven.set()
        return exec_pb2.PrepareResponse()

    @unary
    async def Probe(self, request: exec_pb2.ProbeRequest, context: Any) -> Any:  # noqa: ARG002, N802
        if self._state.session_uid:
            raise WrongState("CLAIMED", "the network is probed before the claim only")
        if len(request.targets) > MAX_TARGETS:
            raise InvalidField("targets", f"at most {MAX_TARGETS}")
        seconds = request.timeout.ToTimedelta() / timedelta(seconds=1) or 1.0
        seconds = min(seconds, MAX_PROBE_SECONDS)
        targets = [_target(index, each) for index, each in enumerate(request.targets)]
        found = await asyncio.gather(*(accepts(*target, seconds) for target in targets))
        reachable = [
            given for given, accepted in zip(request.targets, found, strict=True) if accepted
        ]
        return exec_pb2.ProbeResponse(reachable=reachable)

    @unary
    async def PackageSources(  # noqa: N802
        self,
        request: exec_pb2.PackageSourcesRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> Any:
        if self._state.session_uid:
            raise WrongState("CLAIMED", "package managers are asked before the claim only")
        if self._state.phase is not Phase.WARM:
            raise Unavailable("NOT_WARM", f"this pod is {self._state.phase.value}")
        # The next caller waits for the same work, and has its answer.
        found = await to_its_end(self._package_sources())
        return exec_pb2.PackageSourcesResponse(
            sources=[exec_pb2.PackageSource(manager=manager, url=url) for manager, url in found]
        )

    async def _package_sources(self) -> list[tuple[str, str]]:
        async with self._asking:
            if self._sources is None:
                try:
                    self._sources = await self._ask()
                except ShellError as error:
                    raise Unavailable("NO_SHELL", f"no shell can be started: {error}") from None
            return self._sources

    @unary
    async def Activity(self, request: exec_pb2.ActivityRequest, context: Any) -> Any:  # noqa: ARG002, N802
        response = exec_pb2.ActivityResponse(running_calls=self._activity.running)
        response.idle_for.FromTimedelta(timedelta(seconds=self._activity.idle_for))
        response.active.FromTimedelta(timedelta(seconds=self._activity.active))
        return response

    @unary
    async def Drain(self, request: exec_pb2.DrainRequest, context: Any) -> Any:  # noqa: ARG002, N802
        await self._drain(request.grace.ToTimedelta() / timedelta(seconds=1))
        return exec_pb2.DrainResponse()

    @unary
    async def Trust(self, request: exec_pb2.TrustRequest, context: Any) -> Any:  # noqa: ARG002, N802
        _check_bundle(request.ca_pem)
        # Not while a claim replaces the certificate: each would offer gRPC a state of before.
        async with self._claiming:
            if not self._identity.trusts(request.ca_pem):
                await hand_over(self._config.listen, lambda: self._identity.trust(request.ca_pem))
                log.info("other CAs are trusted from now on")
        return exec_pb2.TrustResponse()


def _uid_map() -> str:
    """As the kernel has it; bounded, for its length is the runtime's choice."""
    try:
        with Path("/proc/self/uid_map").open() as file:
            return file.read(1024).strip()
    except OSError:
        return ""


def _check_claim(request: exec_pb2.ClaimRequest) -> None:
    for name in ("certificate_pem", "private_key_pem"):
        if not getattr(request, name).startswith(b"-----BEGIN "):
            raise InvalidField(name, "must be PEM")
    for key in request.env:
        if not _ENV_NAME.fullmatch(key):
            raise InvalidField("env", f"{key!r} is not a variable's name")
    for index, each in enumerate(request.files):
        path = PurePosixPath(each.path)
        allowed = ("/workspace/", "/mnt/session/uploads/")
        if ".." in path.parts or not str(path).startswith(allowed):
            raise InvalidField(
                f"files[{index}].path", "must be below /workspace or /mnt/session/uploads"
            )
        if each.mode > 0o777:
            raise InvalidField(f"files[{index}].mode", "must be permission bits, at most 0777")


def _check_bundle(ca_pem: bytes) -> None:
    """gRPC says nothing about what it cannot read; it would only let nobody in."""
    if len(ca_pem) > MAX_BUNDLE:
        raise InvalidField("ca_pem", f"at most {MAX_BUNDLE} bytes")
    blocks = _CERTIFICATE.findall(ca_pem)
    if not blocks or _CERTIFICATE.sub(b"", ca_pem).strip():
        raise InvalidField("ca_pem", "must be certificates in PEM, and nothing else")
    for each in blocks:
        try:
            content = base64.b64decode(b"".join(each.split()), validate=True)
        except ValueError:
            content = b""
        if not content.startswith(b"\x30\x82"):
            raise InvalidField("ca_pem", "must be certificates in PEM, and nothing else")


def _target(index: int, given: str) -> tuple[str, int]:
    host, _, port = given.rpartition(":")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host.strip("[]"))), int(port)
    raise InvalidField(
        f"targets[{index}]", "must be an IP address and a port, such as 10.0.0.1:443"
    )
