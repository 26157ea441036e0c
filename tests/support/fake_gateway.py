"""An egress gateway's agent that keeps the API's promises, with nothing behind it.

It is a gRPC server with mutual TLS as the real one, in the test's own loop. What would pass through
the gateway is asked of it: `reaches`. Tests make it hang, lose its answers, or start anew.
"""

import asyncio
import ipaddress
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc

from cloister_api.egress.v1 import egress_pb2, egress_pb2_grpc
from support.certificates import Pair

OPERATOR = b"operator:cloister"
_HOST = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True)
class Held:
    """A state."""

    version: tuple[int, int] = (0, 0)
    policies: Mapping[str, frozenset[str]] = field(default_factory=dict)
    sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By address, the pod's UID and its policy."""
    denied_ranges: frozenset[str] = frozenset()

    def rules(self) -> tuple[object, ...]:
        """What is decided by it."""
        return self.policies, self.sources, self.denied_ranges

    def right(self, address: str) -> tuple[str, frozenset[str]]:
        """Whose an address is, and what that pod may reach."""
        uid, policy = self.sources.get(address, ("", ""))
        return uid, self.policies.get(policy, frozenset())


class FakeGateway(egress_pb2_grpc.EgressGatewayServicer):
    """One gateway."""

    def __init__(self) -> None:
        self.boot_id = uuid.uuid4().hex
        self.held = Held()
        self.ready = False
        """Whether it has had a state since it started."""
        self.pushes: list[tuple[int, int]] = []
        """Term and revision of every state that arrived."""
        self.cut: list[str] = []
        """UIDs of pods whose connections were cut."""
        self.answers = asyncio.Event()
        """Cleared: it takes no call, and answers none."""
        self.answers.set()
        self.loses_answers = False
        """Whether it takes states and tells nobody."""
        self.infos = 0
        self.following = 0
        """Callers that follow what it decides."""
        self._decisions: list[egress_pb2.DecisionsResponse] = []
        self._decided = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self, pair: Pair, ca: bytes, address: str, port: int) -> int:
        """Listen; returns the port."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        egress_pb2_grpc.add_EgressGatewayServicer_to_server(self, self._server)
        credentials = grpc.ssl_server_credentials(
            [(pair.private_key, pair.certificate)], ca, require_client_auth=True
        )
        bound = self._server.add_secure_port(f"{address}:{port}", credentials)
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """End at once."""
        if self._server:
            await self._server.stop(None)

    def restart(self) -> None:
        """Its agent starts anew: what it held goes on, and it is not ready."""
        self.boot_id = uuid.uuid4().hex
        self.ready = False
        self._decisions.clear()
        self._turn()

    def reaches(self, address: str) -> tuple[str, frozenset[str]]:
        """As whom a connection from an address counts, and what it may reach."""
        return self.held.right(address)

    def decide(self, *decisions: egress_pb2.Decision, lost: int = 0) -> None:
        """Tell of decisions."""
        self._decisions.append(
            egress_pb2.DecisionsResponse(
                cursor=len(self._decisions) + 1,
                boot_id=self.boot_id,
                decisions=decisions,
                lost=lost,
            )
        )
        self._turn()

    def _turn(self) -> None:
        decided, self._decided = self._decided, asyncio.Event()
        decided.set()

    # --- the API ---------------------------------------------------------------------------------

    async def Apply(  # noqa: N802
        self, request: egress_pb2.ApplyRequest, context: Any
    ) -> egress_pb2.ApplyResponse:
        await self._let_in(context)
        state = await _parsed(request, context)
        self.pushes.append(state.version)
        held = self.held
        other = state.version == held.version and state.rules() != held.rules()
        if state.version < held.version or other:
            message = f"{state.version} is not newer than {held.version}"
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, message)
        for address in held.sources:
            (was, before), (now, after) = held.right(address), state.right(address)
            if was != now or not before <= after:
                self.cut.append(was)
        self.held, self.ready = state, True
        if self.loses_answers:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, "the connection broke")
        term, revision = state.version
        return egress_pb2.ApplyResponse(term=term, revision=revision, boot_id=self.boot_id)

    async def Info(  # noqa: N802
        self,
        request: egress_pb2.InfoRequest,
        context: Any,
    ) -> egress_pb2.InfoResponse:
        await self._let_in(context)
        self.infos += 1
        term, revision = self.held.version
        return egress_pb2.InfoResponse(
            term=term,
            revision=revision,
            boot_id=self.boot_id,
            sources=len(self.held.sources),
            policies=len(self.held.policies),
        )

    async def Decisions(  # noqa: N802
        self, request: egress_pb2.DecisionsRequest, context: Any
    ) -> AsyncIterator[egress_pb2.DecisionsResponse]:
        await self._let_in(context)
        boot_id = self.boot_id
        cursor = request.cursor if request.boot_id == boot_id else 0
        self.following += 1
        try:
            while boot_id == self.boot_id:
                decided = self._decided
                for each in self._decisions[cursor:]:
                    cursor = each.cursor
                    yield each
                await decided.wait()
        finally:
            self.following -= 1
        await _abort(context, grpc.StatusCode.UNAVAILABLE, "it starts anew")

    async def _let_in(self, context: Any) -> None:
        uris = context.auth_context().get("peer_uri", ())
        if OPERATOR not in uris:
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, "only the operator may")
        await self.answers.wait()


async def _parsed(request: egress_pb2.ApplyRequest, context: Any) -> Held:
    policies = {each.id: frozenset(each.hosts) for each in request.policies}
    for index, policy in enumerate(request.policies):
        for at, host in enumerate(policy.hosts):
            if not _HOST.fullmatch(host):
                await _wrong(context, f"policies[{index}].hosts[{at}]")
    sources: dict[str, tuple[str, str]] = {}
    for index, source in enumerate(request.sources):
        try:
            address = str(ipaddress.ip_address(source.address))
        except ValueError:
            await _wrong(context, f"sources[{index}].address")
        if address in sources:
            await _wrong(context, f"sources[{index}].address")
        if source.policy_id not in policies:
            await _wrong(context, f"sources[{index}].policy_id")
        sources[address] = source.pod_uid, source.policy_id
    ranges = frozenset(request.denied_ranges)
    return Held((request.term, request.revision), policies, sources, ranges)


async def _wrong(context: Any, where: str) -> NoReturn:
    await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"{where}: is wrong")


async def _abort(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort returned")
