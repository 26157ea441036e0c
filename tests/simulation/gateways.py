"""Operators and egress gateways in virtual time: pods come and go, addresses are used again, calls
are late, lost or never answered, gateways and operators end; what a pod is granted is looked at
whenever anything changes.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from cloister_operator.api.gateway import GatewayPod
from cloister_operator.api.pod import PodView, view
from cloister_operator.cache import Store
from cloister_operator.cluster.api import Api
from cloister_operator.controller.gateway_link import Lead
from cloister_operator.controller.gateways import GATEWAY_PODS, Gateways
from cloister_operator.errors import TransientError
from cloister_operator.plan.grants import State
from cloister_operator.sandboxes.gateways import Decided, GatewayInfo, StaleError
from simulation.loop import SimulatedLoop
from support.gateway_site import JSON, gateway_body, pod_body
from support.operator_objects import NOW

ADDRESSES = 4
"""So few that they are used again all the time."""
CALL_SECONDS = 5.0


@dataclass
class Agent:
    """What is in a gateway's pod."""

    boot: int = 0
    version: tuple[int, int] = (0, 0)
    state: State = field(default_factory=State)
    hangs: bool = False
    dead: bool = False

    def take(self, state: State, term: int, revision: int) -> None:
        """Raises StaleError for what is older, or another under the same number."""
        if (term, revision) < self.version or (
            (term, revision) == self.version and state != self.state
        ):
            raise StaleError("older")
        self.version, self.state = (term, revision), state

    def info(self) -> GatewayInfo:
        """What it holds."""
        return GatewayInfo(*self.version, str(self.boot))


class Calls:
    """controller.gateway_link.Client: every call takes its time, and may not come through."""

    def __init__(self, site: "Site") -> None:
        self._site = site

    async def _travel(self, agent: Agent) -> None:
        rng = self._site.rng
        await asyncio.sleep(rng.choice((0.001, 0.001, 0.01, 1.0)))
        if agent.dead or agent.hangs or rng.random() < self._site.rough:
            await asyncio.sleep(CALL_SECONDS)
            raise TransientError("no answer")

    async def apply(
        self, gateway: GatewayPod, state: State, term: int, revision: int
    ) -> GatewayInfo:
        agent = self._site.agents[gateway.uid]
        if self._site.rng.random() < self._site.rough:
            # It arrives later than anybody waits for it.
            late = self._site.rng.uniform(0, 3 * CALL_SECONDS)
            self._site.later(late, lambda: self._arrive(agent, state, term, revision))
            await asyncio.sleep(CALL_SECONDS)
            raise TransientError("no answer")
        await self._travel(agent)
        agent.take(state, term, revision)
        self._site.check()
        await self._travel(agent)
        return GatewayInfo(term, revision, str(agent.boot))

    def _arrive(self, agent: Agent, state: State, term: int, revision: int) -> None:
        if not agent.dead:
            try:
                agent.take(state, term, revision)
            except StaleError:
                return
            self._site.check()

    async def info(self, gateway: GatewayPod) -> GatewayInfo:
        agent = self._site.agents[gateway.uid]
        await self._travel(agent)
        return agent.info()

    async def decisions(
        self,
        gateway: GatewayPod,
        boot_id: str,
        cursor: int,
    ) -> AsyncIterator[Decided]:
        await asyncio.sleep(1000)
        raise TransientError("it ended")
        yield

    def forget(self, pod_uid: str) -> None:
        """Nothing is kept."""


class Pusher:
    """One operator."""

    def __init__(self, site: "Site", term: int) -> None:
        self.pods: Store[PodView] = Store(view, lambda _: (GATEWAY_PODS,))
        self.egress = Gateways(self.pods, site.now)
        self.known: dict[str, PodView] = {}
        self.revoked: set[str] = set()
        """UIDs of pods whose revocation has returned, on time."""
        for body in (*site.bodies.values(), *site.leaving.values()):
            self.egress.mirror.put(body)
        for body in site.pods.values():
            self.pods.put(body)
        self.egress.deny(["10.0.0.0/8"])
        lead = Lead(term, lambda: True, Calls(site), cast("Api", site))
        self.task = asyncio.get_running_loop().create_task(self.egress.run(lead, cast("Any", None)))


class Site:
    """All there is."""

    def __init__(self, rng: random.Random, loop: SimulatedLoop) -> None:
        self.rng = rng
        self._loop = loop
        self.rough = 0.1
        self.agents: dict[str, Agent] = {}
        self.bodies: dict[str, JSON] = {}
        self.leaving: dict[str, JSON] = {}
        """Those of gateways that are being deleted."""
        self.pods: dict[str, JSON] = {}
        self.operators: list[Pusher] = []
        self.violations: list[str] = []
        self._numbers = itertools.count(1)
        self._terms = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def now(self) -> datetime:
        """The time of day goes with the loop's."""
        return NOW + timedelta(seconds=self._loop.time())

    def later(self, seconds: float, what: Any) -> None:
        """Do something later."""
        self._loop.call_later(seconds, what)

    async def delete(self, *_args: object, **_kwargs: object) -> None:
        """cluster.api.Api: an operator deletes a gateway."""
        name = cast("str", _args[2])
        if name in self.bodies:
            self._end_gateway(name, 30.0)

    # --- what happens ----------------------------------------------------------------------------

    def operator(self) -> None:
        """Another operator leads; the one before may go on for a while, as if it still did."""
        if self.operators:
            before = self.operators[-1]
            self.later(self.rng.choice((0.0, 5.0)), before.task.cancel)
        self.operators.append(Pusher(self, next(self._terms)))

    def gateway(self) -> None:
        """A gateway's pod is there."""
        name = f"g{next(self._numbers)}"
        body = gateway_body(
            name, "10.9.9.9", creationTimestamp=self.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        self.bodies[name] = body
        self.agents[body["metadata"]["uid"]] = Agent()
        self._see(body)

    def end_gateway(self) -> None:
        """One is deleted, with time to end or without."""
        if len(self.bodies) > 1:
            self._end_gateway(self.rng.choice(sorted(self.bodies)), self.rng.choice((0.0, 30.0)))

    def _end_gateway(self, name: str, grace: float) -> None:
        body = self.bodies.pop(name)
        end = self.now() + timedelta(seconds=grace)
        fresh = gateway_body(
            name,
            "10.9.9.9",
            creationTimestamp=body["metadata"]["creationTimestamp"],
            deletionTimestamp=end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        self.leaving[name] = fresh
        self._see(fresh)
        agent = self.agents[body["metadata"]["uid"]]

        def gone() -> None:
            agent.dead = True
            if self.rng.random() < 0.8:
                # Otherwise its node is lost, and the pod stays as it is.
                del self.leaving[name]
                for each in self.operators:
                    each.egress.mirror.remove(fresh)

        self.later(grace, gone)

    def hang(self) -> None:
        """A gateway hangs for a while."""
        agent = self.agents[self.bodies[self.rng.choice(sorted(self.bodies))]["metadata"]["uid"]]
        agent.hangs = True
        self.later(self.rng.choice((1.0, 30.0)), lambda: setattr(agent, "hangs", False))

    def restart(self) -> None:
        """Its agent starts anew, and goes by what it held."""
        name = self.rng.choice(sorted(self.bodies))
        self.agents[self.bodies[name]["metadata"]["uid"]].boot += 1

    def pod(self) -> None:
        """A pod is made, and gets an address that nobody has any more."""
        taken = {each["status"]["podIP"] for each in self.pods.values()}
        free = [a for n in range(ADDRESSES) if (a := f"10.1.0.{n + 1}") not in taken]
        if free:
            name = f"p{next(self._numbers)}"
            self.pods[name] = pod_body(name, self.rng.choice(free), [f"{name}.example"])
            for each in self.operators:
                each.pods.put(self.pods[name])

    def vanish(self) -> None:
        """A pod goes; operators hear of it later."""
        if self.pods:
            name = self.rng.choice(sorted(self.pods))
            body = self.pods.pop(name)
            self.later(self.rng.choice((0.0, 0.2)), lambda: self._tell_gone(body))

    def _tell_gone(self, body: JSON) -> None:
        for each in self.operators:
            each.pods.remove(body)
        self.check()

    def revoke(self) -> None:
        """The operator that leads deletes a pod."""
        if self.pods and self.operators:
            name = self.rng.choice(sorted(self.pods))
            pod = view(self.pods[name])
            task = self._loop.create_task(self._revoke(self.operators[-1], name, pod))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _revoke(self, operator: Pusher, name: str, pod: PodView) -> None:
        await operator.egress.revoke(pod)
        known = [
            agent
            for agent in self.agents.values()
            if not agent.dead and pod.uid in agent.state.pod_uids
        ]
        if known and operator is self.operators[-1] and operator.egress._is_revoked(pod.uid):
            self.violations.append(f"{name} was revoked, and a gateway knows it")
        if name in self.pods:
            body = self.pods.pop(name)
            self._tell_gone(body)

    def _see(self, body: JSON) -> None:
        for each in self.operators:
            each.egress.mirror.put(body)

    # --- what must hold --------------------------------------------------------------------------

    def check(self) -> None:
        """Of the operator that leads: whom it grants anything has that, and nothing of others."""
        if not self.operators:
            return
        operator = self.operators[-1]
        for body in self.pods.values():
            pod = view(body)
            if operator.pods.get(*pod.key) is None or not operator.egress.granted(pod):
                continue
            for uid, agent in self.agents.items():
                holder = agent.state.holder(pod)
                if not agent.dead and holder not in ("", pod.uid):
                    self.violations.append(f"{pod.name} is granted, and is {holder} to {uid}")

    def settled(self) -> bool:
        """Whether everybody has what they are to have."""
        operator = self.operators[-1]
        return all(operator.egress.granted(view(each)) for each in self.pods.values())


def run(seed: int) -> list[str]:
    """Let a seed's story happen; what went wrong."""
    rng = random.Random(seed)
    loop = SimulatedLoop(rng)
    site = Site(rng, loop)
    try:
        loop.run_until_complete(_story(site, rng))
        return site.violations
    finally:
        loop.ending = True
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()


async def _story(site: Site, rng: random.Random) -> None:
    site.gateway()
    site.gateway()
    site.operator()
    often = (site.pod, site.pod, site.pod, site.vanish, site.revoke, site.revoke)
    seldom = (site.gateway, site.end_gateway, site.hang, site.restart, site.operator)
    for _ in range(120):
        await asyncio.sleep(rng.choice((0.0, 0.001, 0.05, 0.5, 3.0)))
        rng.choice(often if rng.random() < 0.85 else seldom)()
        site.check()
        if site.violations:
            return
    site.rough = 0.0
    for _ in range(600):
        await asyncio.sleep(1.0)
        site.check()
        if site.settled():
            return
    site.violations.append("who is to have something does not get it")
