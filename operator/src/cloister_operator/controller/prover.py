"""Proves again and again that the network is closed, by pods that wait for a session."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from .. import names
from ..api.pod import PodView
from ..cache import Key
from ..errors import OperatorError
from ..logs import about
from ..plan import proving
from ..plan.failure import Proof
from .context import Context, address

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""Policy engines need a moment for a policy that has changed."""
PAUSE_SECONDS = 1.0
SETTLES_SECONDS = 5.0
"""After a change of the cluster's addresses: policies are written first."""
NETWORKS = (names.NETWORK_NONE, names.NETWORK_GATEWAY, names.NETWORK_UNRESTRICTED)
_TRIED = 3
"""Pods of each kind: one may be claimed, or end, while it is asked."""


class Prover:
    """One canary of each kind of network in each namespace: a warm pod that nobody has claimed.

    Every new pod is probed before it is usable; this finds what opens later. A pod that reaches
    what it must not reach stops new sessions of its kind in its namespace: no warm pod counts as
    usable until it has proven itself again. Sessions that run stay as they are.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._due = asyncio.Event()
        context.ranges.listen(self.hurry)

    def hurry(self) -> None:
        """Prove again soon: something has changed."""
        self._due.set()

    async def run(self) -> None:
        """Prove at once, after each interval, and after changes, until cancelled."""
        while True:
            await self.prove()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._context.settings.proof_interval):
                    await self._due.wait()
                    await asyncio.sleep(SETTLES_SECONDS)
            self._due.clear()

    async def prove(self) -> None:
        """Look which targets are alive, then let one pod of each kind try them."""
        await self._control()
        await asyncio.gather(*(self._prove(*each) for each in self._kinds()))

    async def _control(self) -> None:
        """The positive control: what the operator does not reach either proves nothing."""
        context = self._context
        reaches = context.reaches
        if reaches is None:
            return
        site = context.site()
        tried = sorted({each for kind in NETWORKS for each in proving.targets(site, kind)})
        found = await asyncio.gather(*(reaches(each) for each in tried))
        context.alive = frozenset(each for each, good in zip(tried, found, strict=True) if good)

    def _kinds(self) -> set[Key]:
        return {(pod.namespace, pod.network) for pod in self._waiting()}

    def _waiting(self) -> Iterator[PodView]:
        context = self._context
        for pod in context.pods.all():
            free = pod.uid in context.usable and pod.uid not in context.reserved
            if free and pod.state == names.STATE_WARM and pod.alive:
                yield pod

    async def _prove(self, namespace: str, network: str) -> None:
        kind = namespace, network
        pods = [each for each in self._waiting() if (each.namespace, each.network) == kind]
        for pod in pods[:_TRIED]:
            with about(namespace=namespace, environment=pod.environment, pod=pod.name):
                reached = await self._reached(pod)
            if reached is None:
                continue
            if reached:
                self._refute(pod, reached)
            else:
                context = self._context
                message = proving.message(context.site(), network, context.alive)
                context.record(pod, Proof(True, message, context.clock()))
            return
        log.info("no pod of network %s in %s could be asked to prove it", network, namespace)

    async def _reached(self, pod: PodView) -> list[str] | None:
        """What the pod reaches for longer than a moment; None when it cannot be asked."""
        context, loop = self._context, asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                reached = await context.dialer.probe(address(pod), context.targets(pod))
            except OperatorError as error:
                # Claimed meanwhile, or ended.
                log.info("it cannot be asked: %s", error)
                return None
            if not reached or loop.time() - began > GRACE_SECONDS:
                return reached
            await asyncio.sleep(PAUSE_SECONDS)

    def _refute(self, pod: PodView, reached: list[str]) -> None:
        context = self._context
        message = proving.refutation(pod.name, reached, names.DENY_POLICY)
        log.error("the network is open: %s", message)
        for each in list(self._waiting()):
            if (each.namespace, each.network) == (pod.namespace, pod.network):
                # Each must prove itself before it may be claimed.
                context.usable.discard(each.uid)
        context.record(pod, Proof(False, message, context.clock()))
        context.enqueue_environments(pod.namespace)
