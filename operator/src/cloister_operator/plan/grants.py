"""Who may reach what through the egress gateways, and who has to wait for whom; pure.

A gateway decides by the address that a connection comes from, and addresses are used again. Hence:

- A pod is usable once every gateway that it could be led to holds its address *under its own UID*,
  and no gateway that lives may still hold that address under another.
- A pod is deleted once no gateway that lives may hold its right.

What a gateway may hold is what it acknowledged last, and whatever was sent to it since: an answer
that does not come says nothing.
"""

import hashlib
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from .. import names
from ..api.gateway import GatewayPod
from ..api.pod import PodView

SILENT_FOR = timedelta(seconds=60)
"""A gateway that is not Ready and tells the operator nothing for so long is deleted: it may go by a
state of long ago, and its Deployment makes another one, which begins with none."""
FRESH_MARGIN = timedelta(seconds=30)
"""After the lead changed, the former leader may still have told a new gateway something."""
GONE_MARGIN = timedelta(seconds=30)
"""After the end that the API server gave a pod: its kubelet's clock may be behind, and killing
takes a moment."""
MAX_HOSTS = 1024
MAX_POLICIES = 10_000
MAX_BYTES = 4 * 1024 * 1024
"""Of all policies' hosts. A gateway refuses a state which has too much of anything, as a whole, and
reads a large one for long: one namespace must not keep grants and revocations from others."""
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:\*\.)?(?=.{{1,253}}$)(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
"""What gateways take for a host."""


@dataclass(frozen=True)
class Source:
    """Who an address is."""

    policy: str
    """The policy's id."""
    pod_uid: str


@dataclass(frozen=True)
class State:
    """All that gateways know: what is not in it is denied."""

    policies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Hosts by the policy's id."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """By address."""
    denied_ranges: tuple[str, ...] = ()
    left_out: int = field(default=0, compare=False)
    """Pods without a right because their namespace has more hosts than its share."""

    @cached_property
    def pod_uids(self) -> frozenset[str]:
        """Of all sources."""
        return frozenset(each.pod_uid for each in self.sources.values())

    def holder(self, pod: PodView) -> str:
        """The UID of the pod that has a right under this one's address; empty for none."""
        found = self.sources.get(_address(pod.ip) or "")
        return found.pod_uid if found else ""


def state_of(
    pods: Iterable[PodView], withheld: Collection[str], denied_ranges: Iterable[str] = ()
) -> State:
    """What gateways are to hold.

    `withheld`: UIDs of pods that are about to be deleted. A pod that is on its way out has no right
    any more, whoever deletes it; an address that two pods have gives neither of them one. Nor has
    one that came when its namespace had its share of what gateways hold.
    """
    policies: dict[str, tuple[str, ...]] = {}
    sources: dict[str, Source] = {}
    given: dict[str, PodView] = {}
    taken: set[str] = set()
    twice: set[str] = set()
    for pod in pods:
        address = _address(pod.ip)
        if pod.network != names.NETWORK_GATEWAY or address is None or not pod.alive:
            continue
        if address in taken:
            twice.add(address)
        taken.add(address)
        if pod.uid in withheld:
            continue
        hosts = policy_of(pod)
        policies[(identity := _identity(hosts))] = hosts
        sources[address] = Source(identity, pod.uid)
        given[address] = pod
    for address in twice:
        sources.pop(address, None)
    left_out = _beyond_shares(policies, sources, given)
    for address in left_out:
        del sources[address]
    used = {each.policy for each in sources.values()}
    return State(
        {key: policies[key] for key in sorted(policies.keys() & used)},
        dict(sorted(sources.items())),
        tuple(sorted(set(denied_ranges))),
        len(left_out),
    )


def _beyond_shares(
    policies: Mapping[str, tuple[str, ...]],
    sources: Mapping[str, Source],
    pods: Mapping[str, PodView],
) -> list[str]:
    """The addresses whose policies are too many, or too large, for all to be told.

    Namespaces have equal shares, and what one does not need is for those that need more. Within one
    the oldest pods come first, so that what runs goes on.
    """
    least = MAX_BYTES // MAX_POLICIES + 1
    costs = {key: max(least, sum(map(len, hosts))) for key, hosts in policies.items()}
    if sum(costs.values()) <= MAX_BYTES:
        return []
    wanted: dict[str, dict[str, int]] = {}
    oldest_first = sorted(sources, key=lambda each: (pods[each].created, pods[each].uid))
    for address in oldest_first:
        policy = sources[address].policy
        wanted.setdefault(pods[address].namespace, {})[policy] = costs[policy]
    left, kept = MAX_BYTES, set[tuple[str, str]]()
    modest_first = sorted(wanted, key=lambda each: (sum(wanted[each].values()), each))
    for at, namespace in enumerate(modest_first):
        share = left // (len(modest_first) - at)
        for policy, cost in wanted[namespace].items():
            if cost > share:
                break
            share, left = share - cost, left - cost
            kept.add((namespace, policy))
    return [
        address
        for address in oldest_first
        if (pods[address].namespace, sources[address].policy) not in kept
    ]


def policy_of(pod: PodView) -> tuple[str, ...]:
    """The hosts of a pod; none of them if one cannot be a host's name, for others than the operator
    can write a pod's annotations, and gateways refuse a state of which they do not know a part.
    """
    hosts = tuple(sorted(set(pod.hosts)))
    sound = len(hosts) <= MAX_HOSTS and all(_HOST.fullmatch(each) for each in hosts)
    return hosts if sound else ()


@dataclass(frozen=True)
class Held:
    """What one operator knows of what a gateway may hold."""

    acknowledged: State | None = None
    """The newest that it said it holds; None before it has said anything."""
    answered: bool = False
    """Whether it has said anything at all."""
    doubtful: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By address, the UIDs of pods in all that was sent since and may or may not have arrived."""
    doubtful_uids: frozenset[str] = frozenset()

    def sending(self, state: State) -> "Held":
        """Just before a state is sent."""
        doubtful = dict(self.doubtful)
        for address, source in state.sources.items():
            known = doubtful.get(address)
            if known is None or source.pod_uid not in known:
                doubtful[address] = (known or frozenset()) | {source.pod_uid}
        uids = self.doubtful_uids | state.pod_uids
        return Held(self.acknowledged, self.answered, doubtful, uids)

    def acknowledging(self, state: State) -> "Held":
        """After a state was acknowledged: what was sent before it and comes now is refused."""
        return Held(state, answered=True)

    def holds(self, pod: PodView) -> bool:
        """Whether the pod has its right there, under its own UID."""
        return self.acknowledged is not None and self.acknowledged.holder(pod) == pod.uid

    def may_hold_another(self, pod: PodView) -> bool:
        """Whether another pod may have a right there under this one's address."""
        if self.acknowledged is None or self.acknowledged.holder(pod) not in ("", pod.uid):
            return True
        return not self.doubtful.get(_address(pod.ip) or "", frozenset()) <= {pod.uid}

    def may_hold(self, pod_uid: str) -> bool:
        """Whether the pod may have a right there, under whatever address."""
        return self.acknowledged is None or pod_uid in self.pod_uids

    @property
    def pod_uids(self) -> frozenset[str]:
        """Of all pods that may have a right there, as far as is known."""
        known = self.acknowledged.pod_uids if self.acknowledged else frozenset()
        return known | self.doubtful_uids


def first_known(gateway: GatewayPod, began: datetime) -> Held:
    """What is known of a gateway that this operator sees for the first time, having led since
    `began`: it holds nothing if nobody else can have told it anything.
    """
    fresh = gateway.created > began + FRESH_MARGIN
    return Held(State() if fresh else None)


def lives(gateway: GatewayPod, now: datetime) -> bool:
    """Whether a gateway may serve anybody, whatever it holds."""
    if gateway.ended or not gateway.agent_ran:
        return False
    return gateway.gone_at is None or now <= gateway.gone_at + GONE_MARGIN


def overdue(gateway: GatewayPod, silent_since: datetime, now: datetime) -> bool:
    """Whether a gateway is to be deleted. One that is Ready never is: it serves, and it may be this
    operator that cannot be heard.
    """
    present = gateway.gone_at is None and lives(gateway, now)
    return present and not gateway.ready and now >= silent_since + SILENT_FOR


def is_led_to(gateway: GatewayPod, held: Held) -> bool:
    """Whether sandboxes are led to a gateway that lives, or may be at any moment."""
    return gateway.gone_at is None and (gateway.ready or held.answered)


def granted(pod: PodView, gateways: Iterable[tuple[GatewayPod, Held]]) -> bool:
    """Whether a pod's right is where it may be asked for, and nobody else's is under its address.

    `gateways`: those that live. Without one that is Ready nobody has anything.
    """
    ready = False
    for gateway, held in gateways:
        if held.may_hold_another(pod) or (is_led_to(gateway, held) and not held.holds(pod)):
            return False
        ready |= gateway.ready
    return ready


def revoked(pod_uid: str, gateways: Iterable[tuple[GatewayPod, Held]]) -> bool:
    """Whether no gateway may hold a pod's right any more. `gateways`: those that live."""
    return not any(held.may_hold(pod_uid) for _, held in gateways)


def _identity(hosts: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(hosts).encode()).hexdigest()[:16]


def _address(text: str) -> str | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    no_pods = found.is_loopback or found.is_unspecified or found.is_multicast
    return None if no_pods else str(found)
