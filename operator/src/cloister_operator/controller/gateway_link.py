"""Tells one egress gateway who may reach what, and hears what it decided."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from cloister_api.cancelling import being_cancelled

from ..api.gateway import GatewayPod
from ..cluster.api import Api
from ..errors import OperatorError, TransientError
from ..metrics import EGRESS_PUSH_SECONDS, EGRESS_PUSHES, OK
from ..plan.grants import Held, State
from ..sandboxes.gateways import Decided, GatewayInfo, StaleError

log = logging.getLogger(__name__)

HEARTBEAT: Final = 5.0
"""Seconds between two looks at a gateway that holds the newest state."""
GATHER: Final = 0.02
"""Seconds between two states for one gateway, at least: what comes meanwhile goes with the next."""
FEED_PAUSE: Final = 1.0
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


class Desk(Protocol):
    """What all links of one operator go by; see gateways.Gateways."""

    began: datetime
    """When this operator began to lead."""
    changed: asyncio.Event
    """Replaced each time that it is set: there may be a new state."""

    def find(self, key: tuple[str, str], uid: str) -> GatewayPod | None:
        """The gateway as it is now, if it is that one."""
        ...

    def current(self) -> tuple[State, int] | None:
        """The state as it is to be, and its number; None while nothing must be pushed."""
        ...

    def refused(self, gateway: GatewayPod, held: GatewayInfo, term: int) -> None:
        """A gateway holds something newer."""
        ...

    def moved(self) -> None:
        """What is known of a gateway has changed."""
        ...

    def now(self) -> datetime:
        """The present time."""
        ...


@dataclass
class Known:
    """One gateway, as far as this process knows it."""

    held: Held
    silent_since: datetime
    """When it answered last, or was first seen."""
    failing_since: float | None = None
    """When the first call failed after the last that did not; the loop's clock."""
    boot_id: str = ""
    revision: int = 0
    """Acknowledged; 0 before the first, and where it has to be told again."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Link:
    """The two tasks of one gateway; both end when it is gone."""

    def __init__(
        self, desk: Desk, gateway: GatewayPod, known: Known, lead: Lead, listener: Listener
    ) -> None:
        self._desk = desk
        self._key, self._uid, self._created = gateway.key, gateway.uid, gateway.created
        self._known = known
        self._lead = lead
        self._listener = listener

    async def push(self) -> None:
        """Keep the gateway's state as it is to be."""
        loop, known, desk = asyncio.get_running_loop(), self._known, self._desk
        pause = _FIRST_PAUSE
        while gateway := desk.find(self._key, self._uid):
            changed, wanted = desk.changed, desk.current()
            if wanted is None or not self._lead.leads():
                await changed.wait()
                continue
            began = loop.time()
            try:
                if known.revision != wanted[1]:
                    await self._apply(gateway, *wanted)
                else:
                    self._compare(await self._lead.client.info(gateway))
            except (Exception, asyncio.CancelledError) as error:
                if being_cancelled():
                    raise
                # Nothing else may end what keeps a gateway right.
                await self._after_failure(gateway, error, began)
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)
                continue
            known.failing_since, known.silent_since = None, desk.now()
            pause = _FIRST_PAUSE
            desk.moved()
            # A gateway is told what changes for a third of the time at most.
            await asyncio.sleep(max(GATHER, 2 * (loop.time() - began)))
            changed, wanted = desk.changed, desk.current()
            if wanted and known.revision == wanted[1]:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT):
                        await changed.wait()

    async def _apply(self, gateway: GatewayPod, state: State, revision: int) -> None:
        known, lead = self._known, self._lead
        known.held = known.held.sending(state)
        outcome = "lost"
        try:
            with EGRESS_PUSH_SECONDS.time():
                answer = await lead.client.apply(gateway, state, lead.term, revision)
            if (answer.term, answer.revision) != (lead.term, revision):
                raise TransientError(f"egress gateway {gateway.name} answers for another state")
            outcome = OK
        except OperatorError as error:
            outcome = "stale" if isinstance(error, StaleError) else error.outcome
            raise
        finally:
            EGRESS_PUSHES.labels(outcome).inc()
        known.held = known.held.acknowledging(state)
        known.boot_id, known.revision = answer.boot_id, revision

    def _compare(self, found: GatewayInfo) -> None:
        """One that started anew wants to be told again, though it may have kept what it held."""
        known = self._known
        wanted = self._lead.term, known.revision, known.boot_id
        if (found.term, found.revision, found.boot_id) != wanted:
            known.revision = 0

    async def _after_failure(self, gateway: GatewayPod, error: BaseException, began: float) -> None:
        """Find out what it means."""
        known = self._known
        known.revision = 0
        if isinstance(error, StaleError):
            log.info("%s", error)
            with contextlib.suppress(OperatorError):
                held = await self._lead.client.info(gateway)
                self._desk.refused(gateway, held, self._lead.term)
        elif known.failing_since is None:
            known.failing_since = began
            temporary = isinstance(error, TransientError)
            strange = None if isinstance(error, OperatorError) else error
            log.log(logging.INFO if temporary else logging.ERROR, "%s", error, exc_info=strange)
        self._desk.moved()

    async def follow(self) -> None:
        """Read what the gateway decides."""
        boot_id, cursor = "", 0
        while gateway := self._desk.find(self._key, self._uid):
            try:
                async for each in self._lead.client.decisions(gateway, boot_id, cursor):
                    history = not boot_id and self._created <= self._desk.began
                    boot_id, cursor = each.boot_id, each.cursor
                    self._listener.decided(gateway, each, history=history)
            except OperatorError as error:
                log.debug("%s", error)
            except (Exception, asyncio.CancelledError):
                if being_cancelled():
                    raise
                log.exception("what egress gateway %s decided cannot be read", gateway.name)
            await asyncio.sleep(FEED_PAUSE)
