"""Keeps every egress gateway's state as it is to be, and makes who has to wait for that wait.

The whole state goes to each gateway whenever it changes, numbered by the lead's term and a
revision: what changes while one is under way goes with the next. All of it is derived from the
mirror of pods, so that the next leader pushes the same.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from .. import names
from ..api import conditions
from ..api.gateway import GatewayPod, gateway_view
from ..api.pod import PodView
from ..cache import Store
from ..cluster.api import Api
from ..cluster.resources import PODS
from ..errors import OperatorError, TransientError
from ..metrics import EGRESS_GATEWAYS, EGRESS_PUSH_SECONDS, EGRESS_PUSHES, EGRESS_UNREVOKED, OK
from ..plan import grants
from ..plan.failure import Failure
from ..plan.grants import Held, State
from ..sandboxes.gateways import Decided, GatewayInfo, StaleError

log = logging.getLogger(__name__)

HEARTBEAT: Final = 5.0
"""Seconds between two looks at a gateway that holds the newest state."""
GATHER: Final = 0.02
"""Seconds between two states for one gateway, at least: what comes meanwhile goes with the next."""
LOOK: Final = 5.0
"""Seconds between two looks at what changes by the time alone."""
REVOKE_SECONDS: Final = 10.0
"""How long a pod's deletion waits for gateways."""
TELL_SECONDS: Final = 10.0
"""After this a pod that waits for gateways is told of, and again."""
FEED_PAUSE: Final = 1.0
GATEWAY_PODS: Final = ("network", names.NETWORK_GATEWAY)
"""The group of pods that need gateways, in their mirror."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Client(Protocol):
    """Calls to gateways; see sandboxes.gateways.EgressGateways."""

    async def apply(
        self, gateway: GatewayPod, state: State, term: int, revision: int
    ) -> GatewayInfo: ...

    async def info(self, gateway: GatewayPod) -> GatewayInfo: ...

    def decisions(
        self, gateway: GatewayPod, boot_id: str, cursor: int
    ) -> AsyncIterator[Decided]: ...

    def forget(self, pod_uid: str) -> None: ...


class Listener(Protocol):
    """Who is told what gateways decided."""

    def decided(self, gateway: GatewayPod, decided: Decided, *, history: bool) -> None:
        """`history`: it may have been told to an earlier leader."""
        ...


@dataclass(frozen=True)
class Lead:
    """The time in which this process leads."""

    term: int
    """Greater than that of every leader before."""
    leads: Callable[[], bool]
    """Whether it still does, at this very moment."""
    client: Client
    api: Api


@dataclass
class _Known:
    """One gateway, as far as this process knows it."""

    held: Held
    silent_since: datetime
    """When it answered last, or was first seen."""
    failing_since: float | None = None
    """When the first call failed after the last that did not; the loop's clock."""
    boot_id: str = ""
    revision: int = 0
    """Acknowledged; 0 before the first, and after it started anew."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Gateways:
    """The gateways of one release, for one process: who leads runs it, others only mirror."""

    def __init__(self, pods: Store[PodView], clock: Callable[[], datetime]) -> None:
        self._pods = pods
        self._clock = clock
        self.mirror: Store[GatewayPod] = Store(gateway_view, lambda _: ())
        self._known: dict[str, _Known] = {}
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
        self._changed = asyncio.Event()
        """Replaced each time that it is set: a link has something to do."""
        self._moved = asyncio.Event()
        """Likewise: who waits for gateways looks again."""
        self._began = clock()
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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REVOKE_SECONDS):
                while not self._is_revoked(pod.uid) and not self._only_silent_hold(pod.uid):
                    await self._moved.wait()
        if not self._is_revoked(pod.uid):
            EGRESS_UNREVOKED.inc()
            log.warning("pod %s goes before it is revoked everywhere: %s", pod.name, self._waits())

    def restore(self, pod: PodView) -> None:
        """The pod stays after all."""
        if pod.uid in self._withheld:
            self._withheld.discard(pod.uid)
            self._change()

    def check_new(self) -> None:
        """Raise TransientError when no pod must be made that needs gateways.

        A pod's own setup runs before it is granted anything. While a gateway that does not answer
        may know a pod that is gone, none is made that could get its address.
        """
        if self._deposed:
            raise TransientError("another operator tells the egress gateways what to let through")
        present = self._current()[0].pod_uids
        for gateway, known in self._living_known():
            if known.failing_since is not None and not known.held.holds_only(present):
                raise TransientError(
                    f"egress gateway {gateway.name} does not answer, and may know pods of before"
                )

    def pods(self) -> list[PodView]:
        """Those that need gateways."""
        return self._pods.group(GATEWAY_PODS)

    # --- while leading ---------------------------------------------------------------------------

    async def run(self, lead: Lead, listener: Listener) -> None:
        """Push until cancelled; not to be called again in this object's life."""
        self._began = self._clock()
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
                held = grants.first_known(gateway, self._began)
                known = self._known[gateway.uid] = _Known(held, now)
            if not known.tasks and gateway.ip:
                log.info("follows egress gateway %s", gateway.name)
                known.tasks = [
                    group.create_task(self._push(gateway.key, gateway.uid, known, lead)),
                    group.create_task(self._follow(gateway.key, gateway.uid, lead, listener)),
                ]
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

    async def _push(self, key: tuple[str, str], uid: str, known: _Known, lead: Lead) -> None:
        """Keep one gateway's state; ends when it is gone."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while (gateway := self.mirror.get(*key)) is not None and gateway.uid == uid:
            changed = self._changed
            state, revision = self._current()
            if self._ranges is None or self._deposed or not lead.leads():
                await changed.wait()
                continue
            began = loop.time()
            try:
                if known.revision != revision:
                    await self._apply(gateway, known, lead, state, revision)
                else:
                    self._compare(known, await lead.client.info(gateway), lead, revision)
            except Exception as error:
                # Nothing may end what keeps a gateway right.
                await self._after_failure(gateway, known, lead, error, began)
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)
                continue
            known.failing_since, known.silent_since = None, self._clock()
            pause = _FIRST_PAUSE
            self._move()
            # A gateway is told what changes for a third of the time at most.
            await asyncio.sleep(max(GATHER, 2 * (loop.time() - began)))
            if known.revision == self._current()[1]:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT):
                        await self._changed.wait()

    async def _apply(
        self, gateway: GatewayPod, known: _Known, lead: Lead, state: State, revision: int
    ) -> None:
        known.held = known.held.sending(state)
        outcome = "lost"
        try:
            with EGRESS_PUSH_SECONDS.time():
                answer = await lead.client.apply(gateway, state, lead.term, revision)
            outcome = OK
        except OperatorError as error:
            outcome = "stale" if isinstance(error, StaleError) else error.outcome
            raise
        finally:
            EGRESS_PUSHES.labels(outcome).inc()
        known.held = known.held.acknowledging(state)
        known.boot_id, known.revision = answer.boot_id, revision

    def _compare(self, known: _Known, found: GatewayInfo, lead: Lead, revision: int) -> None:
        """One that started anew wants to be told again, though it may have kept what it held."""
        wanted = lead.term, revision, known.boot_id
        if (found.term, found.revision, found.boot_id) != wanted:
            known.revision = 0

    async def _after_failure(
        self, gateway: GatewayPod, known: _Known, lead: Lead, error: Exception, began: float
    ) -> None:
        """Find out what it means."""
        known.revision = 0
        if isinstance(error, StaleError):
            log.info("%s", error)
            with contextlib.suppress(OperatorError):
                self._refused(gateway, await lead.client.info(gateway), lead)
        elif known.failing_since is None:
            known.failing_since = began
            temporary = isinstance(error, TransientError)
            strange = None if isinstance(error, OperatorError) else error
            log.log(logging.INFO if temporary else logging.ERROR, "%s", error, exc_info=strange)
        self._move()

    def _refused(self, gateway: GatewayPod, found: GatewayInfo, lead: Lead) -> None:
        """Either another operator leads by now, or this one did before, in the same term."""
        if found.term > lead.term:
            log.error("egress gateway %s follows another operator: pushing no more", gateway.name)
            self._deposed = True
        elif found.term == lead.term:
            self._revision = max(self._revision, found.revision + 1)
            self._change()

    async def _follow(self, key: tuple[str, str], uid: str, lead: Lead, listener: Listener) -> None:
        """Read what one gateway decides; ends when it is gone."""
        boot_id, cursor = "", 0
        while (gateway := self.mirror.get(*key)) is not None and gateway.uid == uid:
            try:
                async for each in lead.client.decisions(gateway, boot_id, cursor):
                    history = not boot_id and gateway.created <= self._began
                    boot_id, cursor = each.boot_id, each.cursor
                    listener.decided(gateway, each, history=history)
            except OperatorError as error:
                log.debug("%s", error)
            except Exception:
                log.exception("what egress gateway %s decided cannot be read", gateway.name)
            await asyncio.sleep(FEED_PAUSE)

    # --- what is known ---------------------------------------------------------------------------

    def _current(self) -> tuple[State, int]:
        """The state as it is to be, and its number."""
        if self._stale:
            self._stale = False
            pods = self._pods.group(GATEWAY_PODS)
            state = grants.state_of(pods, self._withheld, self._ranges or ())
            if state != self._state or not self._revision:
                self._state = state
                self._revision += 1
        return self._state, self._revision

    def _living_known(self) -> Iterable[tuple[GatewayPod, _Known]]:
        now = self._clock()
        for gateway in self.mirror.all():
            if grants.lives(gateway, now):
                held = grants.first_known(gateway, self._began)
                yield gateway, self._known.get(gateway.uid) or _Known(held, now)

    def _living(self) -> Iterable[tuple[GatewayPod, Held]]:
        return ((gateway, known.held) for gateway, known in self._living_known())

    def _is_revoked(self, uid: str) -> bool:
        return grants.revoked(uid, self._living())

    def _only_silent_hold(self, uid: str) -> bool:
        return all(
            self._is_silent(known) for _, known in self._living_known() if known.held.may_hold(uid)
        )

    @staticmethod
    def _is_silent(known: _Known) -> bool:
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
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


def _right(pod: PodView | None) -> tuple[object, ...] | None:
    if pod is None or pod.network != names.NETWORK_GATEWAY or not pod.alive:
        return None
    return pod.uid, pod.ip, pod.hosts
