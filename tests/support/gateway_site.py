"""Egress gateways that listen, mirrors that tell of them and of pods, and who pushes to them."""

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from cloister_operator import names
from cloister_operator.api.conditions import timestamp
from cloister_operator.api.gateway import GatewayPod
from cloister_operator.api.pod import PodView, view
from cloister_operator.cache import Store
from cloister_operator.cluster.api import Api
from cloister_operator.controller.gateway_link import Lead
from cloister_operator.controller.gateways import GATEWAY_PODS, Gateways
from cloister_operator.identity import Authority
from cloister_operator.sandboxes.gateways import Decided, EgressGateways
from support.certificates import Pair
from support.fake_gateway import FakeGateway
from support.operator_objects import NAMESPACE, NOW
from support.sandbox_server import free_port

JSON = dict[str, Any]
SYSTEM = "cloister-system"
_VERSIONS = itertools.count(1)


def pod_body(name: str, ip: str, hosts: Iterable[str] = ("a.example",), **metadata: Any) -> JSON:
    """A sandbox pod that needs gateways."""
    return {
        "metadata": {
            "namespace": NAMESPACE,
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": str(next(_VERSIONS)),
            "creationTimestamp": timestamp(NOW),
            "labels": {names.NETWORK_LABEL: names.NETWORK_GATEWAY},
            "annotations": {names.EGRESS_HOSTS: ",".join(hosts)},
            **metadata,
        },
        "status": {"podIP": ip, "phase": "Running"},
    }


def gateway_body(
    name: str, ip: str, *, ready: bool = True, ran: bool = True, restarts: int = 0, **metadata: Any
) -> JSON:
    """A gateway's pod."""
    state: JSON = {"running": {}} if ran else {"waiting": {}}
    return {
        "metadata": {
            "namespace": SYSTEM,
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": str(next(_VERSIONS)),
            "creationTimestamp": timestamp(NOW),
            "labels": {names.COMPONENT_LABEL: names.EGRESS_COMPONENT},
            **metadata,
        },
        "spec": {"volumes": []},
        "status": {
            "podIP": ip,
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"name": "agent", "restartCount": restarts, "state": state}],
        },
    }


@dataclass
class Told:
    """controller.gateways.Listener that remembers."""

    messages: list[tuple[str, Decided, bool]] = field(default_factory=list)

    def decided(self, gateway: GatewayPod, decided: Decided, *, history: bool) -> None:
        self.messages.append((gateway.name, decided, history))


@dataclass
class Deletions:
    """cluster.api.Api that only deletes, and remembers what."""

    names: list[str] = field(default_factory=list)

    async def delete(
        self,
        resource: object,
        namespace: str,
        name: str,
        uid: str = "",
        version: str = "",
    ) -> None:
        self.names.append(name)


class Site:
    """Gateways on loopback addresses of their own; every operator has a mirror of its own."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.port = free_port()
        self.gateways: dict[str, FakeGateway] = {}
        self.addresses: dict[str, str] = {}
        self.operators: list[Pusher] = []
        self.pods: dict[str, JSON] = {}
        self.bodies: dict[str, JSON] = {}

    async def gateway(self, name: str, **status: Any) -> FakeGateway:
        """Start one; every operator sees its pod."""
        made = self.gateways[name] = FakeGateway()
        self.addresses[name] = f"127.0.0.{len(self.gateways) + 1}"
        identity = self.authority.egress_gateway_server(datetime.now(UTC))
        pair = Pair(identity.certificate_pem, identity.private_key_pem)
        await made.start(pair, self.authority.ca_pem, self.addresses[name], self.port)
        self.see(name, **status)
        return made

    def see(self, name: str, **status: Any) -> None:
        """A gateway's pod changes."""
        body = self.bodies[name] = gateway_body(name, self.addresses[name], **status)
        for each in self.operators:
            each.egress.mirror.put(body)

    def unsee(self, name: str) -> None:
        """A gateway's pod is gone."""
        body = self.bodies.pop(name)
        for each in self.operators:
            each.egress.mirror.remove(body)

    def pod(
        self, name: str, ip: str, hosts: Iterable[str] = ("a.example",), **meta: Any
    ) -> PodView:
        """A sandbox pod is there, or changes."""
        body = self.pods[name] = pod_body(name, ip, hosts, **meta)
        for each in self.operators:
            each.pods.put(body)
        return view(body)

    def gone(self, name: str) -> None:
        """A sandbox pod is gone."""
        body = self.pods.pop(name)
        for each in self.operators:
            each.pods.remove(body)

    def operator(self, term: int = 1) -> "Pusher":
        """An operator that leads as far as it knows, and has seen all that there is."""
        made = Pusher(self, term)
        for body in self.bodies.values():
            made.egress.mirror.put(body)
        for body in self.pods.values():
            made.pods.put(body)
        made.egress.deny(["10.244.0.0/16"])
        self.operators.append(made)
        return made

    async def close(self) -> None:
        """End all."""
        for each in self.operators:
            await each.kill()
        for gateway in self.gateways.values():
            gateway.answers.set()
            await gateway.stop()


class Pusher:
    """One operator, as far as gateways are concerned."""

    def __init__(self, site: Site, term: int) -> None:
        self.now = NOW
        self.pods: Store[PodView] = Store(view, lambda _: (GATEWAY_PODS,))
        self.egress = Gateways(self.pods, lambda: self.now)
        self.client = EgressGateways(site.authority, port=site.port)
        self.told = Told()
        self.deletions = Deletions()
        self.leads = True
        api = cast("Api", self.deletions)
        self._lead = Lead(term, lambda: self.leads, self.client, api)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> "Pusher":
        """Push."""
        self._task = asyncio.create_task(self.egress.run(self._lead, self.told))
        return self

    async def kill(self) -> None:
        """End without a word."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.client.aclose()
