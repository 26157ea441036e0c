"""The calls that the operator makes to egress gateways."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import grpc

from cloister_api.egress.v1 import egress_pb2, egress_pb2_grpc

from .. import names
from ..api import conditions
from ..api.backend import EgressRecord
from ..api.gateway import GatewayPod
from ..errors import ConflictError, OperatorError, PermanentError, TransientError
from ..identity import Authority
from ..plan.grants import State
from .answers import clean
from .links import Link, Links, PodAddress

APPLY_SECONDS: Final = 5.0
INFO_SECONDS: Final = 2.0
MAX_ANSWER: Final = 4 * 1024 * 1024
"""Bytes: the decisions of a second, about many hosts of many pods."""
MAX_GATEWAYS: Final = 64
_IDENTIFIER: Final = 128
_HOST: Final = 253
_Answer = TypeVar("_Answer")


class StaleError(ConflictError):
    """The gateway holds a newer state, or another one under the same number."""


@dataclass(frozen=True)
class GatewayInfo:
    """What a gateway says that it holds."""

    term: int
    revision: int
    boot_id: str


@dataclass(frozen=True)
class Decision(EgressRecord):
    """Connections that a gateway decided alike, as it says."""

    pod_uid: str
    """Empty where no source had the address."""


@dataclass(frozen=True)
class Decided:
    """One message of a gateway's feed."""

    boot_id: str
    cursor: int
    decisions: Sequence[Decision]
    lost: int
    """Decisions that are not told of."""


class EgressGateways:
    """Calls to gateways, over one channel each.

    Errors: TransientError where a gateway does not answer, or not as itself; it may have taken what
    was sent. StaleError where it holds something newer. PermanentError for a state that it refuses.
    """

    def __init__(
        self,
        authority: Authority,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        port: int = names.EGRESS_AGENT_PORT,
    ) -> None:
        self._links = Links(authority, clock, MAX_GATEWAYS, MAX_ANSWER)
        self._port = port

    async def apply(
        self, gateway: GatewayPod, state: State, term: int, revision: int
    ) -> GatewayInfo:
        """Replace what the gateway holds; the answer is what it holds now."""
        request = egress_pb2.ApplyRequest(
            term=term,
            revision=revision,
            policies=[
                egress_pb2.Policy(id=identity, hosts=hosts)
                for identity, hosts in state.policies.items()
            ],
            sources=[
                egress_pb2.Source(address=address, policy_id=each.policy, pod_uid=each.pod_uid)
                for address, each in state.sources.items()
            ],
            denied_ranges=state.denied_ranges,
        )
        answer = await self._call(gateway, lambda stub: stub.Apply(request, timeout=APPLY_SECONDS))
        return GatewayInfo(answer.term, answer.revision, clean(answer.boot_id, _IDENTIFIER))

    async def info(self, gateway: GatewayPod) -> GatewayInfo:
        """What the gateway holds."""
        answer = await self._call(
            gateway, lambda stub: stub.Info(egress_pb2.InfoRequest(), timeout=INFO_SECONDS)
        )
        return GatewayInfo(answer.term, answer.revision, clean(answer.boot_id, _IDENTIFIER))

    async def decisions(
        self, gateway: GatewayPod, boot_id: str, cursor: int
    ) -> AsyncIterator[Decided]:
        """Follow what the gateway decides, from the last message that was taken of that boot."""
        request = egress_pb2.DecisionsRequest(boot_id=boot_id, cursor=cursor)
        with self._links.use(self._address(gateway), names.EGRESS_GATEWAY) as link:
            try:
                async for each in egress_pb2_grpc.EgressGatewayStub(link.channel).Decisions(
                    request
                ):
                    yield _decided(each)
            except grpc.aio.AioRpcError as error:
                raise self._failure(gateway, link, error) from None

    def forget(self, pod_uid: str) -> None:
        """The gateway is gone."""
        self._links.forget(pod_uid)

    async def aclose(self) -> None:
        """Close every channel."""
        await self._links.aclose()

    def _address(self, gateway: GatewayPod) -> PodAddress:
        return PodAddress(gateway.name, gateway.uid, gateway.ip, self._port)

    async def _call(
        self,
        gateway: GatewayPod,
        call: Callable[["egress_pb2_grpc.EgressGatewayAsyncStub"], Awaitable[_Answer]],
    ) -> _Answer:
        with self._links.use(self._address(gateway), names.EGRESS_GATEWAY) as link:
            try:
                return await call(egress_pb2_grpc.EgressGatewayStub(link.channel))
            except grpc.aio.AioRpcError as error:
                raise self._failure(gateway, link, error) from None

    def _failure(
        self, gateway: GatewayPod, link: Link, error: grpc.aio.AioRpcError
    ) -> OperatorError:
        said = clean(error.details() or "", 256)
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            return StaleError(f"egress gateway {gateway.name} refuses: {said}")
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            message = f"egress gateway {gateway.name} refuses a state: {said}"
            return PermanentError(conditions.REJECTED, message)
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            # The next attempt dials at once instead of waiting for gRPC's own backoff.
            self._links.forget(gateway.uid, link)
        return TransientError(
            f"egress gateway {gateway.name} does not answer: {error.code().name}: {said}"
        )


def _decided(given: egress_pb2.DecisionsResponse) -> Decided:
    return Decided(
        clean(given.boot_id, _IDENTIFIER),
        given.cursor,
        [
            Decision(
                pod_uid=clean(each.pod_uid, _IDENTIFIER),
                host=clean(each.host, _HOST),
                port=min(each.port, 65535),
                allowed=each.allowed,
                reason=clean(each.reason, 64),
                count=each.count,
                first=each.first.ToDatetime(UTC),
                last=each.last.ToDatetime(UTC),
                bytes_sent=each.bytes_sent,
                bytes_received=each.bytes_received,
            )
            for each in given.decisions
        ],
        given.lost,
    )
