"""Leader election over one Lease.

The official client has one (kubernetes.aio.leaderelection). It is not used: it never releases
the Lease, so that every clean exit would cost the others its whole duration; it measures with the
clock of the day, which is set back and forth; it counts a renewal from when the answer came and not
from when it was asked for; and a call that hangs holds it up past the end of its time, while
whoever was elected goes on acting.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from .. import names
from ..api.common import JSON
from ..cluster.api import Api
from ..cluster.resources import LEASES
from ..errors import ConflictError, NotFoundError, OperatorError
from ..plan import lease
from ..plan.lease import DEADLINE, LOOK_EVERY, RENEW_EVERY, Record, Seen

log = logging.getLogger(__name__)

Term = Callable[[], Coroutine[Any, Any, None]]
"""What is done while leading."""
AGAIN_SECONDS = 0.5
"""Between two attempts to renew that failed."""
RELEASE_SECONDS = 2.0
"""For giving the Lease away at the end: what takes longer is left to run out."""


class Election:
    """One candidate. `api` must not be fenced by this very election."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        address: str,
        clock: Callable[[], datetime],
    ) -> None:
        """`identity`: nobody else's at the same time, such as the pod's name.

        `address`: host:port where the others reach this process's Sessions API.
        """
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._address = address
        self._clock = clock
        self._seen: Seen | None = None
        self._until = -1.0
        self._resigned = asyncio.Event()

    def leads(self) -> bool:
        """Whether this process may act at this moment."""
        return asyncio.get_running_loop().time() < self._until and not self._resigned.is_set()

    def leader(self) -> str:
        """host:port of another process that leads as far as is known; empty when there is none."""
        if self._seen is None or self._seen.record.holder in ("", self._identity):
            return ""
        return self._seen.record.address

    @property
    def term(self) -> int:
        """A number of this term of this process, greater than that of every term before it."""
        return self._seen.record.term if self._seen else 0

    @property
    def resigned(self) -> bool:
        """Whether this process wants to lead no more."""
        return self._resigned.is_set()

    async def run(self, term: Term) -> None:
        """Stand for election, and once elected run `term`; returns when the term is over, or when
        resigned.

        `term` is cancelled when the Lease cannot be renewed in time. However it ends, the Lease is
        released after it has ended, and not before. An exception of `term` is raised.
        """
        try:
            if await self._elected():
                log.info("leads as %s", self._identity)
                try:
                    await self._serve(term)
                finally:
                    log.info("leads no more")
        finally:
            self._until = -1.0
            await self._release()

    def resign(self) -> None:
        """Stand no more: `leads` is False from now on, and `run` ends."""
        self._resigned.set()

    # --- standing ----------------------------------------------------------------------------

    async def _elected(self) -> bool:
        """Wait until elected; False once resigned."""
        while not self._resigned.is_set():
            try:
                async with asyncio.timeout(DEADLINE):
                    if await self._attempt():
                        return True
            except (OperatorError, TimeoutError) as error:
                log.debug("the Lease cannot be taken: %r", error)
            await self._pause(LOOK_EVERY)
        return False

    async def _attempt(self) -> bool:
        """Look at the Lease, and take it if it is to be had."""
        loop = asyncio.get_running_loop()
        try:
            found = await self._api.get(LEASES, self._namespace, names.LEASE)
        except NotFoundError:
            asked = loop.time()
            body = lease.fresh(self._identity, self._address, self._clock())
            made = await self._api.create(LEASES, self._namespace, body)
            self._take(made, asked)
            return True
        self._look(found)
        if self._seen is None or not lease.may_take(self._seen, self._identity, loop.time()):
            return False
        await self._write(lease.taken)
        return True

    def _look(self, found: JSON) -> None:
        # Counted from now, after the answer: the holder may have renewed as late as that.
        self._seen = lease.seen(self._seen, lease.read(found), asyncio.get_running_loop().time())

    async def _write(self, patch: Callable[..., list[JSON]]) -> None:
        """Take or renew the Lease as it was last seen."""
        if self._seen is None:
            raise ConflictError("the Lease has not been read")
        # Counted from here: at the API server it is renewed later than this.
        asked = asyncio.get_running_loop().time()
        operations = patch(self._seen.record, self._identity, self._address, self._clock())
        made = await self._api.json_patch(LEASES, self._namespace, names.LEASE, operations)
        self._take(made, asked)

    def _take(self, made: JSON, asked: float) -> None:
        self._look(made)
        self._until = asked + DEADLINE

    # --- leading -----------------------------------------------------------------------------

    async def _serve(self, term: Term) -> None:
        serving = asyncio.create_task(term(), name="term")
        renewing = asyncio.create_task(self._renew(), name="lease")
        try:
            await asyncio.wait({serving, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._until = -1.0
            ended = serving.done()
            for each in (serving, renewing):
                each.cancel()
            results = await asyncio.gather(serving, renewing, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        if ended and not self._resigned.is_set():
            raise RuntimeError("the term ended by itself")

    async def _renew(self) -> None:
        """Renew until that fails for too long, another one has the Lease, or resigned."""
        loop = asyncio.get_running_loop()
        while not self._resigned.is_set():
            await self._pause(min(RENEW_EVERY, max(0.0, self._until - loop.time() - RENEW_EVERY)))
            if self._resigned.is_set():
                return
            while True:
                try:
                    async with asyncio.timeout_at(self._until):
                        if not await self._renewed():
                            return
                    break
                except (OperatorError, TimeoutError) as error:
                    log.warning("the Lease was not renewed: %r", error)
                if loop.time() + AGAIN_SECONDS >= self._until:
                    # Whoever leads stops by itself in time, and not when somebody tells it.
                    await asyncio.sleep(max(0.0, self._until - loop.time()))
                    return
                await asyncio.sleep(AGAIN_SECONDS)

    async def _renewed(self) -> bool:
        """Renew once; False when another one has the Lease."""
        try:
            await self._write(lease.taken)
        except (ConflictError, NotFoundError):
            # An answer that was lost, or somebody's hand: what is there decides.
            with contextlib.suppress(NotFoundError):
                found = await self._api.get(LEASES, self._namespace, names.LEASE)
                self._look(found)
                if self._seen and self._seen.record.holder not in ("", self._identity):
                    return False
            if not await self._attempt():
                return False
        return True

    async def _release(self) -> None:
        if self._seen is None or self._seen.record.holder != self._identity:
            return
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                try:
                    await self._give_away(self._seen.record)
                except ConflictError:
                    # The answer of the last renewal may not have come any more.
                    found = await self._api.get(LEASES, self._namespace, names.LEASE)
                    if lease.read(found).holder == self._identity:
                        await self._give_away(lease.read(found))
        except (OperatorError, TimeoutError) as error:
            log.warning("the Lease was not released and has to run out: %r", error)
        else:
            log.info("released the Lease")

    async def _give_away(self, record: Record) -> None:
        operations = lease.released(record)
        await self._api.json_patch(LEASES, self._namespace, names.LEASE, operations)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._resigned.wait()
