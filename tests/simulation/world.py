"""A cluster whose every moment a seed decides, and operators in it."""

import asyncio
import random
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, cast

from cloister_operator.api.session import SessionObject
from cloister_operator.cluster.api import ExpiredError
from cloister_operator.cluster.resources import PODS
from cloister_operator.controller.backend import Backend
from cloister_operator.errors import ConflictError, OperatorError, TransientError
from cloister_operator.identity import Authority, Identity
from cloister_operator.sandboxes import Activity, ClaimPayload, PodAddress, SandboxInfo
from support.fake_api import Connection, FakeCluster, Fault, Write
from support.fake_operator import OPEN_NAMESPACE, Clock, Operator, World
from support.invariants import Invariants
from support.operator_objects import NAMESPACE, NOW

JSON = dict[str, Any]
ENDED_TTL_SECONDS = 90.0


class VirtualClock(Clock):
    """The time of day goes with the loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def __call__(self) -> datetime:
        return NOW + timedelta(seconds=self._loop.time())


class QuickAuthority:
    """identity.Authority without its cryptography, which is most of what a schedule would cost."""

    ca_pem = b"ca"

    def pod_server(self, pod_uid: str, now: datetime) -> Identity:
        return Identity(b"certificate", b"key", self.ca_pem, now)

    def session_server(self, session_uid: str, now: datetime, lifetime: timedelta) -> Identity:
        return Identity(b"certificate", b"key", self.ca_pem, now + lifetime)

    session_client = session_server


class Sea:
    """How long everything takes, and which writes go wrong: all of it drawn from the seed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.rough = 0.0
        """The share of writes that go wrong."""

    def latency(self) -> float:
        """Seconds that half of a call takes."""
        draw = self.rng.random()
        if draw < 0.7:
            return 0.001
        return self.rng.uniform(0.001, 0.01 if draw < 0.98 else 1.0)

    def notice(self) -> float:
        """Seconds until the collector or a kubelet takes notice."""
        return self.rng.choice((0.0, 0.01, 0.3, 2.0))

    def arrives(self) -> bool:
        """Whether what a dead operator had sent arrives."""
        return self.rng.random() < 0.5

    def fault(self) -> Fault | None:
        """What goes wrong with this write."""
        if self.rng.random() >= self.rough:
            return None
        return self.rng.choice(
            (Fault.REFUSED, Fault.LOST, Fault.LOST, Fault.BUSY, Fault.CONFLICT, Fault.FORBIDDEN)
        )


class Line(Connection):
    """A Connection that also sees when its operator offers one pod to two sessions."""

    def __init__(self, world: "SimWorld") -> None:
        self._world = world
        self.dies_at: tuple[int, Fault] | None = None
        """How many writes from now, and whether before or after."""
        self._offered: dict[str, str] = {}
        sea = world.sea
        super().__init__(world.cluster, self._choose, latency=sea.latency, arrives=sea.arrives)

    def _choose(self, _count: int, _write: Write) -> Fault | None:
        if self.dies_at:
            left, fault = self.dies_at
            self.dies_at = (left - 1, fault)
            if left <= 0:
                return fault
        return self._world.sea.fault()

    async def gone(self) -> None:
        """What a dead operator waits for."""
        await self._never.wait()

    async def json_patch(self, *args: Any) -> JSON:
        resource, _, name, operations = args
        # Its volume claim has the pod's name, and becomes the session's that has won the pod, while
        # the answer to another one that has lost it may be on its way.
        for each in operations if resource == PODS else ():
            if each["path"] == "/metadata/labels/cloister.dev~1session":
                other = self._offered.setdefault(name, each["value"])
                if other != each["value"]:
                    self._world.invariants.violated(f"pod {name} was offered to two sessions")
        try:
            return await super().json_patch(*args)
        except OperatorError:
            if resource == PODS:
                # It may be offered again: the session did not get it.
                self._offered.pop(name, None)
            raise


class Wire:
    """controller.context.Dialer of one operator: its calls take time, and end with it."""

    def __init__(self, world: "SimWorld", line: Line) -> None:
        self._world = world
        self._line = line

    async def _travel(self) -> None:
        await asyncio.sleep(self._world.sea.latency())
        if self._line.killed.is_set():
            await self._line.gone()

    async def wait_warm(
        self, pod: PodAddress, deadline: float, session_uid: str = ""
    ) -> SandboxInfo:
        await self._travel()
        found = await self._world.sandboxes.wait_warm(pod, deadline, session_uid)
        await self._travel()
        return found

    async def probe(self, pod: PodAddress, targets: list[str]) -> list[str]:
        await self._travel()
        found = await self._world.sandboxes.probe(pod, targets)
        await self._travel()
        return found

    async def claim(self, pod: PodAddress, claim: ClaimPayload) -> bool:
        await self._travel()
        try:
            if not self._world.sandboxes.answering.is_set():
                raise TransientError(f"pod {pod.name} does not answer")
            replayed = await self._world.sandboxes.claim(pod, claim)
            await self._travel()
            if self._world.sea.rng.random() < self._world.sea.rough:
                raise TransientError(f"no answer from pod {pod.name}")
        except ConflictError:
            raise
        except TransientError:
            self._world.invariants.unanswered(pod.uid)
            raise
        return replayed

    async def activity(self, pod: PodAddress, session_uid: str) -> Activity:
        await self._travel()
        return await self._world.sandboxes.activity(pod, session_uid)

    def __getattr__(self, name: str) -> Any:
        # What is not simulated here is as the exec servers have it.
        return getattr(self._world.sandboxes, name)


class SimWorld(World):
    """A World in virtual time."""

    def __init__(self, rng: random.Random, loop: asyncio.AbstractEventLoop, most: int = 0) -> None:
        """`most`: sessions that the platform allows in a namespace; 0: any number."""
        self.sea = Sea(rng)
        self._loop = loop
        super().__init__(
            cast("Authority", QuickAuthority()),
            ended_session_ttl_seconds=ENDED_TTL_SECONDS,
            max_sessions_per_namespace=most,
        )
        self.sandboxes.longest_pause = 5.0
        self.an_hour = timedelta(hours=1)
        self.deaths = 0
        """Operators that died."""
        self.doubled = False
        """Whether two operators led at once."""
        self.invariants = Invariants(self.cluster, self.sandboxes.claimed, self.sandboxes.probes)
        self.invariants.most = most

    def _clock(self) -> Clock:
        return VirtualClock(self._loop)

    def _cluster(self) -> FakeCluster:
        rng = self.sea.rng
        return FakeCluster(
            self.clock,
            history=500,
            namespaces={NAMESPACE: OPEN_NAMESPACE},
            kubelet=True,
            uids=lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            delay=self.sea.notice,
        )


class SimOperator(Operator):
    """An operator with a Sessions API, and watches of custom resources as fragile as kopf's."""

    def __init__(self, world: SimWorld, change: Callable[[Operator], None] | None) -> None:
        """`change`: what is made wrong with it, on purpose."""
        self.line = Line(world)
        super().__init__(world, self.line, Wire(world, self.line))
        self.backend = Backend(self.context)
        self._observe_places(world.invariants)
        if change:
            change(self)

    def _observe_places(self, invariants: Invariants) -> None:
        """Let them see when it gives a place, which is before anything is written."""
        places = self.context.places
        admitting = places.admitting

        def noted(session: SessionObject) -> AbstractContextManager[None]:
            invariants.gives_place(session.metadata.namespace, session.metadata.uid)
            return admitting(session)

        places.admitting = noted  # type: ignore[method-assign,assignment]

    async def _observe(self, resource: Any, begin: int) -> None:
        """Lists and watches; like kopf it does not tell of what was deleted in between."""
        version = ""
        while True:
            try:
                if not version:
                    found, version = await self.connection.list(resource)
                    for obj in found:
                        self.controller.observe(resource.plural, None, obj)
                async for kind, obj in self.connection.watch(resource, "", "", version):
                    version = obj["metadata"]["resourceVersion"]
                    self.controller.observe(resource.plural, kind, obj)
            except ExpiredError:
                version = ""
            except OperatorError:
                await asyncio.sleep(0.5)

    def die(self) -> None:
        """From now on nothing it does has any effect, but for what is on its way."""
        self.connection.killed.set()

    @property
    def serves(self) -> bool:
        """Whether its Sessions API can be called."""
        return self.context.synced.is_set() and not self.connection.killed.is_set()
