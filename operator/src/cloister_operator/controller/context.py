"""What the reconcilers share."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from .. import names
from ..api.environment import EnvironmentObject
from ..api.pod import PodView, view
from ..api.session import Phase, SessionObject
from ..cache import Key, Store
from ..cluster.api import Api
from ..identity import Authority
from ..metrics import FAILURES
from ..plan import proving
from ..plan.admission import Verdict, hindrance
from ..plan.candidates import choose
from ..plan.failure import Failure, Proof
from ..plan.proving import Site
from ..plan.ranges import on_the_internet
from ..recipe import Recipe
from ..sandboxes import Activity, ClaimPayload, PodAddress, SandboxInfo
from ..settings import Settings
from ..workqueue import WorkQueue
from .flights import Flights
from .gateways import GATEWAY_PODS, Gateways
from .places import Places, of_namespace
from .promises import Promises
from .ranges import Ranges
from .recent import Recent
from .repositories import Repositories
from .usage import Usage
from .witness import Witness

WorkKey = tuple[str, str, str]
"""Kind (environment or session), namespace, name."""


class Dialer(Protocol):
    """Calls to exec servers; see sandboxes.Sandboxes."""

    async def wait_warm(
        self, pod: PodAddress, deadline: float, session_uid: str = ""
    ) -> SandboxInfo: ...

    async def probe(self, pod: PodAddress, targets: list[str]) -> list[str]: ...

    async def deliver(self, pod: PodAddress, path: str, archive: Path) -> None: ...

    async def prepare(self, pod: PodAddress) -> None: ...

    async def package_sources(self, pod: PodAddress) -> list[tuple[str, list[str]]]: ...

    async def claim(self, pod: PodAddress, claim: ClaimPayload) -> bool: ...

    async def activity(self, pod: PodAddress, session_uid: str) -> Activity: ...

    async def drain(self, pod: PodAddress, session_uid: str, grace: timedelta) -> None: ...

    async def trust(self, pod: PodAddress, session_uid: str, ca_pem: bytes) -> None: ...

    def connected(self, pod_uid: str) -> bool: ...

    def forget(self, pod_uid: str) -> None: ...


@dataclass(frozen=True)
class Resolved:
    """An Environment as it was last resolved: a recipe, or why there is none."""

    uid: str
    generation: int
    recipe: Recipe | None = None
    problem: Failure | None = None

    def of(self, environment: EnvironmentObject) -> bool:
        """Whether it is about this state of the Environment, and not one of the same name."""
        metadata = environment.metadata
        return (self.uid, self.generation) == (metadata.uid, metadata.generation)


def _pod_groups(pod: PodView) -> Iterable[tuple[str, ...]]:
    yield ("environment", pod.namespace, pod.environment)
    yield ("recipe", pod.namespace, pod.environment, pod.recipe)
    yield ("state", pod.namespace, pod.environment, pod.recipe, pod.state)
    if pod.network == names.NETWORK_GATEWAY:
        yield GATEWAY_PODS
    if pod.session_uid:
        # A label says little: no pod of another namespace can be the session's.
        yield ("session", pod.namespace, pod.session_uid)


def _session_groups(session: SessionObject) -> Iterable[tuple[str, ...]]:
    yield ("environment", session.metadata.namespace, session.spec.environment_name)
    request = session.metadata.annotations.get(names.REQUEST_ID)
    if request:
        yield ("request", session.metadata.namespace, request)
    yield ("namespace", session.metadata.namespace)
    first = session.first_pod
    # Who waits for a place may do so for hours, and the annotation is anybody's.
    if first and session.status.phase is Phase.PENDING and not session.in_line:
        yield ("first", *session.environment_key, first.uid)


@dataclass
class Context:
    """The API, exec servers, mirrors of objects, and what this process found out about pods.

    What it found out is lost at a restart and found out again.
    """

    api: Api
    dialer: Dialer
    authority: Authority
    settings: Settings
    clock: Callable[[], datetime]
    queue: WorkQueue[WorkKey] = field(init=False)
    usage: Usage = field(init=False)
    places: Places = field(init=False)
    namespace_places: Places | None = field(init=False, default=None)
    """Where the platform limits the sessions of a namespace, its places."""
    promises: Promises = field(init=False)
    witness: Witness = field(init=False)
    egress: Gateways = field(init=False)
    repositories: Repositories = field(init=False)
    """What is in the git repositories that Environments name."""
    recent: Recent = field(default_factory=Recent)
    """What egress gateways decided lately."""
    ranges: Ranges = field(init=False)
    """The cluster's own addresses."""
    environments: Store[EnvironmentObject] = field(
        default_factory=lambda: Store(EnvironmentObject.parse, lambda _: ())
    )
    sessions: Store[SessionObject] = field(
        default_factory=lambda: Store(SessionObject.parse, _session_groups)
    )
    pods: Store[PodView] = field(default_factory=lambda: Store(view, _pod_groups))
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when every mirror has had its first list: nothing is decided before."""
    resolved: dict[Key, Resolved] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    """Why a pod cannot serve, by its UID."""
    refusals: dict[str, Failure] = field(default_factory=dict)
    """By UID, why the API server does not let a pod have what it mounts."""
    usable: set[str] = field(default_factory=set)
    """UIDs of pods that answer, are set up and were proven isolated, by this process."""
    identified: set[str] = field(default_factory=set)
    """UIDs of pods whose identity Secret this process knows to exist."""
    made: set[str] = field(default_factory=set)
    """UIDs of pods that this process has made."""
    reserved: set[str] = field(default_factory=set)
    """UIDs of warm pods that a claim in this process has taken."""
    placed: set[str] = field(default_factory=set)
    """UIDs of claimed pods whose sessions are known not to be one too many, until they run."""
    met: set[str] = field(default_factory=set)
    """UIDs of pods that this process told first whose they are, of those that another one chose for
    their sessions; until these run."""
    flights: Flights = field(default_factory=Flights)
    """Pods that may have been made though no answer came."""
    doubted: set[Key] = field(default_factory=set)
    """Environments that lost a pod which nobody here deleted: they may be gone themselves."""
    failed_starts: dict[Key, int] = field(default_factory=dict)
    """By Environment, failures one after the other of its pool's new pods."""
    proofs: dict[Key, Proof] = field(default_factory=dict)
    """By namespace and kind of network, what the last probe found."""
    probe_targets: list[str] = field(default_factory=list)
    """host:port that no sandbox may reach, and the operator does."""
    gateway: str = ""
    """host:port at which sandboxes reach the egress gateways; empty where there are none."""
    alive: frozenset[str] = frozenset()
    """host:port of other things that no sandbox may reach, and that the operator reached itself."""
    reaches: Callable[[str], Awaitable[bool]] | None = None
    """Whether this process reaches host:port; None where it is not to try."""

    admission: dict[str, Verdict] = field(default_factory=dict)
    """By namespace, whether the admission policies have an effect."""

    def __post_init__(self) -> None:
        self.promises = Promises(self.sessions, self.reserved)
        self.places = Places(self.pods, self.sessions)
        if self.settings.max_sessions_per_namespace:
            self.namespace_places = Places(self.pods, self.sessions, of_namespace)
        self.witness = Witness(self.pods)
        self.egress = Gateways(self.pods, self.clock)
        self.usage = Usage(self.clock)
        self.repositories = Repositories(
            self.api, self.settings, lambda key: self.queue.add(("environment", *key))
        )
        self.ranges = Ranges(self.api, self.settings)
        # Gateways deny by themselves what is special, and take a bounded number of others.
        self.ranges.listen(lambda: self.egress.deny(on_the_internet(self.ranges.current or ())))
        self.sessions.listen(self.usage.changed)

    def site(self) -> Site:
        """What no sandbox may reach."""
        return Site(
            tuple(self.probe_targets),
            self.ranges.landmarks,
            self.gateway,
            self.settings.egress_nameservers,
            self.settings.proof_skip,
        )

    def targets(self, pod: PodView, *, brief: bool = False) -> list[str]:
        """What a pod is to try to reach; `brief`: see plan.proving."""
        group = ("recipe", pod.namespace, pod.environment, pod.recipe)
        other = next(
            (x for x in self.pods.group(group) if x.uid != pod.uid and x.ip and x.alive), None
        )
        others = [address(other).endpoint] if other else []
        return proving.targets(self.site(), pod.network, pod.node, others, brief=brief)

    def record(self, pod: PodView, proof: Proof) -> None:
        """Keep what a pod's tries have shown of its namespace, for pods of its kind."""
        key = pod.namespace, pod.network
        before = self.proofs.get(key)
        self.proofs[key] = proof
        if before is None or before.enforced != proof.enforced:
            self.enqueue_environments(pod.namespace)

    def series(self, namespace: str, environment: str) -> Key:
        """The labels of an Environment; of one that is not there, which anybody may name, blank."""
        if self.environments.get(namespace, environment) is not None:
            return namespace, environment
        return namespace if namespace in self.settings.sandbox_namespaces else "", ""

    def failed(self, pod_uid: str, failure: Failure) -> None:
        """A pod cannot serve."""
        known = self.failures.get(pod_uid)
        if known is None or known.reason != failure.reason:
            FAILURES.labels("pod", failure.reason).inc()
        self.failures[pod_uid] = failure

    def unguarded(self, namespace: str) -> Failure | None:
        """Why the admission policies of a sandbox namespace keep it from giving sessions."""
        if namespace not in self.settings.sandbox_namespaces:
            # Nobody tries there, and something else is said of it.
            return None
        return hindrance(self.admission.get(namespace), self.settings.admission_required)

    def refusal(self, pods: Iterable[PodView]) -> Failure | None:
        """Why one of these pods does not get what it mounts, if that is so."""
        return next((self.refusals[each.uid] for each in pods if each.uid in self.refusals), None)

    def enqueue_environments(self, namespace: str = "") -> None:
        """Look again at all Environments, or at those of a namespace."""
        for key in list(self.environments):
            if namespace in ("", key[0]):
                self.queue.add(("environment", *key))

    def enqueue_pod_owners(self, pod: PodView) -> None:
        """Look again at the Environment and the Session of a pod."""
        if pod.environment:
            self.queue.add(("environment", pod.namespace, pod.environment))
        if pod.session_name:
            self.queue.add(("session", pod.namespace, pod.session_name))

    def enqueue_waiting_sessions(self, namespace: str, environment: str) -> None:
        """Look again at an Environment's sessions that have not come to their end."""
        for session in self.sessions.group(("environment", namespace, environment)):
            if not session.status.phase.ended:
                self.queue.add(("session", *session.key))

    def forget_pod(self, uid: str) -> None:
        """Drop what is known about a pod that is gone."""
        self.failures.pop(uid, None)
        self.refusals.pop(uid, None)
        self.usable.discard(uid)
        self.reserved.discard(uid)
        self.identified.discard(uid)
        self.made.discard(uid)
        self.placed.discard(uid)
        self.met.discard(uid)
        self.dialer.forget(uid)

    def forget_strangers(self) -> None:
        """Drop what is known about pods that are not there: an answer that came just as one went
        may have brought it after `forget_pod`, and nothing tells of that pod again.
        """
        present = {pod.uid for pod in self.pods.all()}
        for uids in (self.usable, self.reserved, self.identified, self.made, self.placed, self.met):
            uids.intersection_update(present)
        for known in (self.failures, self.refusals):
            for uid in known.keys() - present:
                del known[uid]
        self.doubted.intersection_update(self.environments)

    def take_warm(self, environment: EnvironmentObject, recipe: str) -> PodView | None:
        """Reserve a warm pod of the recipe: no await between the look and the reservation."""
        group = ("state", *environment.key, recipe, names.STATE_WARM)
        free = [
            pod
            for pod in self.pods.group(group)
            if pod.alive
            and not pod.node_silent
            and pod.uid in self.usable
            and pod.uid not in self.reserved
            and not self.promised(pod)
        ]
        # Where the channel is open, the claim pays no handshake.
        chosen = choose([pod for pod in free if self.dialer.connected(pod.uid)] or free)
        if chosen:
            self.reserved.add(chosen.uid)
        return chosen

    def promised(self, pod: PodView) -> bool:
        """Whether a Session that waits was made for this pod, which then was warm."""
        if pod.state == names.STATE_STARTING:
            return False
        return bool(self.sessions.group(("first", pod.namespace, pod.environment, pod.uid)))

    def about_to_be_usable(self, environment: EnvironmentObject, recipe: str) -> bool:
        """Whether a warm pod is there that this process, just started, has yet to prove."""
        group = ("state", *environment.key, recipe, names.STATE_WARM)
        return any(
            pod.alive
            and not pod.node_silent
            and pod.uid not in self.usable
            and pod.uid not in self.failures
            for pod in self.pods.group(group)
        )


def address(pod: PodView) -> PodAddress:
    """Where to dial a pod."""
    return PodAddress(pod.name, pod.uid, pod.ip)
