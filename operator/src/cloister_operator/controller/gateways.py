"""Keeps every egress gateway's state as it is to be, and makes who has to wait for that wait.

The whole state goes to each gateway whenever it changes, numbered by the lead's term and a
revision: what changes while one is under way goes with the next. All of it is derived from the
mirror of pods, so that the next leader pushes the same.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

from .. import names
from ..api import conditions
from ..api.gateway import GatewayPod, gateway_view
from ..api.pod import PodView
from ..cache import Store
from ..cluster.api import Api
from ..cluster.resources import PODS
from ..errors import OperatorError, TransientError
from ..metrics import EGRESS_GATEWAYS, EGRESS_UNREVOKED
from ..plan import grants
from ..plan.failure import Failure
from ..plan.grants import Held, State
from ..sandboxes.gateways import GatewayInfo
from .gateway_link import Known, Lead, Link, Listener

log = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks at what changes by the time alone."""
REVOKE_SECONDS: Final = 10.0
"""How long a pod's deletion waits for gateways."""
TELL_SECONDS: Final = 10.0
"""After this a pod that waits for gateways is told of, and again."""
GATEWAY_PODS: Final = ("network", names.NETWORK_GATEWAY)
"""The group of pods that need gateways, in their mirror."""


class Gateways:
    """The gateways of one release, for one process: who leads runs it, others only mirror."""

    def __init__(self, pods: Store[PodView], clock: Callable[[], datetime]) -> None:
        self._pods = pods
        self._clock = clock
        self.mirror: Store[GatewayPod] = Store(gateway_view, lambda _: ())
        self._known: dict[str, Known] = {}
        self._withheld: set[str] = set()
        """UIDs of pods that are about to be deleted; they stay here until they are gone."""
        self._waiting: set[str] = set()
        """UIDs of pods that have waited for gateways for long."""
        self._ranges: tuple[str, ...] | None = None
        """None until they are known: nothing is pushed before."""
        self._state = State()
        self._revision = 0
        self._stale = True
        """Whether the state has to be made anew."""
        self.changed = asyncio.Event()
        """See Desk."""
        self._moved = asyncio.Event()
        """Likewise: who waits for gateways looks again."""
        self.began = clock()
        self._deposed = False
        pods.listen(self._pod_changed)
        self.mirror.listen(self._gateway_changed)

    # --- what the rest of the operator asks ------------------------------------------------------

    def deny(self, ranges: Iterable[str]) -> None:
        """Let no connection lead to these ranges (CIDR), whatever its name."""
        found = tuple(sorted(set(ranges)))
        if found != self._ranges:
            self._ranges = found
            self._change()

    def granted(self, pod: PodView) -> bool:
        """Whether the pod may be used: if it needs gateways, they let it through."""
        return pod.network != names.NETWORK_GATEWAY or (
            not self._deposed and grants.granted(pod, self._living())
        )

    async def until_granted(self, pod: PodView, tell: Callable[[], None] = lambda: None) -> None:
        """Return when the pod is granted; calls `tell` now and then when that takes long."""
        try:
            while not self.granted(pod):
                try:
                    async with asyncio.timeout(TELL_SECONDS):
                        while not self.granted(pod):
                            await self._moved.wait()
                except TimeoutError:
                    self._waiting.add(pod.uid)
                    log.warning("pod %s waits for the egress gateways: %s", pod.name, self._waits())
                    tell()
        finally:
            self._waiting.discard(pod.uid)

    def problem(self, pods: Iterable[PodView]) -> Failure | None:
        """Why one of these pods waits for gateways, if one has for long."""
        held_up = next((each for each in pods if each.uid in self._waiting), None)
        if held_up is None:
            return None
        message = f"pod {held_up.name} waits until the egress gateways know it: {self._waits()}"
        return Failure(conditions.EGRESS_NOT_GRANTED, message)

    async def revoke(self, pod: PodView) -> None:
        """Take the pod's right away everywhere, before it is deleted.

        Returns after some seconds at the latest: a gateway that does not answer must keep no pod.
        What such a gateway may still hold then keeps others out from under the pod's address.
        """
        if pod.network != names.NETWORK_GATEWAY:
            return
        self._withheld.add(pod.uid)
        self._change()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REVOKE_SECONDS):
                    while not self._is_revoked(pod.uid) and not self._only_silent_hold(pod.uid):
                        await self._moved.wait()
        finally:
            present = self._pods.get(*pod.key)
            if present is None or present.uid != pod.uid:
                # It went before, or meanwhile: nobody tells of that again.
                self._withheld.discard(pod.uid)
        if not self._is_revoked(pod.uid):
            EGRESS_UNREVOKED.inc()
            log.warning("pod %s goes before it is revoked everywhere: %s", pod.name, self._waits())

    def restore(self, pod: PodView) -> None:
        """The pod stays after all."""
        if pod.uid in self._withheld:
            self._withheld.discard(pod.uid)
            self._change()

    async def until_clean(self) -> None:
        """Return when no gateway may know a pod that is gone by now.

        A pod's own setup runs before it is granted anything: none is made that could get an address
        which a gateway still takes for another's. Raises TransientError when that takes too long.
        """
        present = self._current()[0].pod_uids
        gone = frozenset().union(*(held.pod_uids for _, held in self._living())) - present
        try:
            async with asyncio.timeout(REVOKE_SECONDS):
                while names_ := self._not_clean(gone):
                    if self._deposed or all(self._is_silent(each) for each in names_.values()):
                        break
                    await self._moved.wait()
        except TimeoutError:
            pass
        if names_:
            raise TransientError(
                f"egress gateways may know pods that are gone, and do not answer: {self._waits()}"
            )

    def _not_clean(self, gone: frozenset[str]) -> dict[str, Known]:
        return {
            gateway.name: known
            for gateway, known in self._living_known()
            if known.held.acknowledged is None or known.held.pod_uids & gone
        }

    def pods(self) -> list[PodView]:
        """Those that need gateways."""
        return self._pods.group(GATEWAY_PODS)

    # --- while leading ---------------------------------------------------------------------------

    async def run(self, lead: Lead, listener: Listener) -> None:
        """Push until cancelled; not to be called again in this object's life."""
        self.began = self._clock()
        self._known.clear()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    moved = self._moved
                    self._look(group, lead, listener)
                    await self._delete_one_overdue(lead.api)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK):
                            await moved.wait()
                    if not moved.is_set():
                        # Time alone changes whether a gateway may still be alive.
                        self._move()
        finally:
            EGRESS_GATEWAYS.clear()

    def _look(self, group: asyncio.TaskGroup, lead: Lead, listener: Listener) -> None:
        """Follow those that live, and forget those that are gone."""
        now = self._clock()
        for gateway in self.mirror.all():
            if not grants.lives(gateway, now):
                continue
            known = self._known.get(gateway.uid)
            if known is None:
                held = grants.first_known(gateway, self.began)
                known = self._known[gateway.uid] = Known(held, now)
            if not known.tasks and gateway.ip:
                log.info("follows egress gateway %s", gateway.name)
                link = Link(self, gateway, known, lead, listener)
                known.tasks = [group.create_task(link.push()), group.create_task(link.follow())]
        living = {each.uid for each in self.mirror.all() if grants.lives(each, now)}
        for uid in self._known.keys() - living:
            for task in self._known.pop(uid).tasks:
                task.cancel()
            lead.client.forget(uid)
        self._count()

    async def _delete_one_overdue(self, api: Api) -> None:
        """One at a time: what keeps them silent may be this operator."""
        now = self._clock()
        living = [each for each in self.mirror.all() if grants.lives(each, now)]
        if any(each.gone_at is not None for each in living):
            return
        for gateway in living:
            known = self._known.get(gateway.uid)
            if known and grants.overdue(gateway, known.silent_since, now):
                log.warning("egress gateway %s stays silent, and is deleted", gateway.name)
                try:
                    await api.delete(PODS, gateway.namespace, gateway.name, uid=gateway.uid)
                except OperatorError as error:
                    log.warning("egress gateway %s is not deleted: %s", gateway.name, error)
                return

    # --- what links go by: see Desk --------------------------------------------------------------

    def find(self, key: tuple[str, str], uid: str) -> GatewayPod | None:
        """The gateway as it is now, if it is that one."""
        found = self.mirror.get(*key)
        return found if found and found.uid == uid else None

    def current(self) -> tuple[State, int] | None:
        """The state as it is to be, and its number; None while nothing must be pushed."""
        return None if self._ranges is None or self._deposed else self._current()

    def refused(self, gateway: GatewayPod, held: GatewayInfo, term: int) -> None:
        """Either another operator leads by now, or this one did before, in the same term."""
        if held.term > term:
            log.error("egress gateway %s follows another operator: pushing no more", gateway.name)
            self._deposed = True
        elif held.term == term:
            self._revision = max(self._revision, held.revision + 1)
            self._change()

    def moved(self) -> None:
        """What is known of a gateway has changed."""
        self._move()

    def now(self) -> datetime:
        """The present time."""
        return self._clock()

    # --- what is known ---------------------------------------------------------------------------

    def _current(self) -> tuple[State, int]:
        """The state as it is to be, and its number."""
        if self._stale:
            self._stale = False
            pods = self._pods.group(GATEWAY_PODS)
            state = grants.state_of(pods, self._withheld, self._ranges or ())
            if state != self._state or not self._revision:
                if state.left_out > self._state.left_out:
                    log.warning(
                        "namespaces have more hosts than gateways hold: %d pods get no access",
                        state.left_out,
                    )
                self._state = state
                self._revision += 1
        return self._state, self._revision

    def _living_known(self) -> Iterable[tuple[GatewayPod, Known]]:
        now = self._clock()
        for gateway in self.mirror.all():
            if grants.lives(gateway, now):
                held = grants.first_known(gateway, self.began)
                yield gateway, self._known.get(gateway.uid) or Known(held, now)

    def _living(self) -> Iterable[tuple[GatewayPod, Held]]:
        return ((gateway, known.held) for gateway, known in self._living_known())

    def _is_revoked(self, uid: str) -> bool:
        return grants.revoked(uid, self._living())

    def _only_silent_hold(self, uid: str) -> bool:
        return all(
            self._is_silent(known) for _, known in self._living_known() if known.held.may_hold(uid)
        )

    @staticmethod
    def _is_silent(known: Known) -> bool:
        since = known.failing_since
        return since is not None and asyncio.get_running_loop().time() - since >= REVOKE_SECONDS

    def _waits(self) -> str:
        """Which gateways are waited for."""
        if self._deposed:
            return "another operator tells them what to let through"
        _, revision = self._current()
        found = [
            gateway.name for gateway, known in self._living_known() if known.revision != revision
        ]
        if not found and self._state.left_out:
            return "Environments list more hosts than they hold, and namespaces have equal shares"
        return f"{', '.join(found)} may not know yet" if found else "none of them is Ready"

    def _count(self) -> None:
        _, revision = self._current()
        found = {"ready": 0, "behind": 0, "starting": 0}
        for gateway in self.mirror.all():
            known = self._known.get(gateway.uid)
            state = "behind" if known is None or known.revision != revision else "ready"
            found[state if gateway.ready else "starting"] += 1
        for each, count in found.items():
            EGRESS_GATEWAYS.labels(each).set(count)

    # --- what happens ----------------------------------------------------------------------------

    def _pod_changed(self, before: PodView | None, after: PodView | None) -> None:
        if before and (after is None or after.uid != before.uid):
            self._withheld.discard(before.uid)
        if _right(before) != _right(after):
            self._change()

    def _gateway_changed(self, before: GatewayPod | None, after: GatewayPod | None) -> None:
        if before and after and before.restarts != after.restarts:
            # Its agent started anew: it wants its state at once.
            known = self._known.get(after.uid)
            if known:
                known.revision = 0
        self._change()
        self._move()

    def _change(self) -> None:
        self._stale = True
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


def _right(pod: PodView | None) -> tuple[object, ...] | None:
    if pod is None or pod.network != names.NETWORK_GATEWAY or not pod.alive:
        return None
    return pod.uid, pod.ip, pod.hosts
