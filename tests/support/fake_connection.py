"""One operator's way to a FakeCluster, on which writes go wrong and watches are held and cut."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from cloister_operator.cluster.resources import EVENTS, Resource
from cloister_operator.errors import (
    ConflictError,
    LostError,
    OperatorError,
    RefusedError,
    TransientError,
)
from support.fake_cluster import FakeCluster, Write

JSON = dict[str, Any]
OPERATOR = "operator"
"""Who acts when a Connection writes."""


class Fault(Enum):
    """What goes wrong with a write."""

    REFUSED = "nothing happens, and the answer is a 500, which does not say so"
    FORBIDDEN = "nothing happens: a quota or a policy is against it"
    BUSY = "nothing happens: too many requests, come again in a second"
    CONFLICT = "nothing happens to what is patched: somebody else wrote at the same time"
    LOST = "it happens, and no answer comes"
    KILLED_BEFORE = "the operator dies before it"
    KILLED_AFTER = "it happens, and the operator dies before it hears of it"


def _selected(obj: JSON, fields: str) -> bool:
    """A field selector of `path=value` pairs."""
    for part in filter(None, fields.split(",")):
        path, _, wanted = part.partition("=")
        found: Any = obj
        for key in path.split("."):
            found = (found or {}).get(key)
        if found != wanted:
            return False
    return True


class Connection:
    """cluster.api.Api on a FakeCluster, for one operator."""

    def __init__(
        self,
        cluster: FakeCluster,
        fault: Callable[[int, Write], Fault | None] = lambda _n, _w: None,
        jitter: random.Random | None = None,
        latency: Callable[[], float] | None = None,
        arrives: Callable[[], bool] = lambda: False,
    ) -> None:
        """`fault` is asked at each write, counted from 1 (Events left out); `jitter` decides how
        many other steps the event loop takes before and after a call, or `latency` how many
        seconds; `arrives` whether what was on its way when the operator died comes about.
        """
        self._cluster = cluster
        self._fault = fault
        self._jitter = jitter
        self._latency = latency
        self._arrives = arrives
        self._count = 0
        self._cuts = 0
        self._never = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.killed = asyncio.Event()
        """Set once the operator is to be taken for dead: none of its calls returns any more."""
        self.away = False
        """The server cannot be reached."""
        self.refusal: OperatorError | None = None
        """What dry runs fail with; None lets them through."""

    def cut_watches(self) -> None:
        """End every watch; what it had still to tell is told to the next one."""
        self._cuts += 1
        self._cluster.wake()

    def hold_watches(self, hold: bool) -> None:
        """Whether watches are silent, without an end."""
        if hold:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def _travel(self) -> None:
        if self._latency:
            await asyncio.sleep(self._latency())
            return
        for _ in range(self._jitter.randrange(4) if self._jitter else 1):
            await asyncio.sleep(0)

    async def _live(self) -> None:
        if self.killed.is_set():
            await self._never.wait()

    async def _pause(self) -> None:
        await self._live()
        await self._travel()
        await self._live()
        if self.away:
            raise TransientError("the API server cannot be reached")

    async def _write(self, verb: str, plural: str, name: str, act: Callable[[], Any]) -> Any:
        await self._live()
        if self.away:
            raise TransientError("the API server cannot be reached")
        await self._travel()
        if self.killed.is_set() and self._arrives():
            with self._cluster.acting(OPERATOR), contextlib.suppress(OperatorError):
                act()
                self._cluster.late.append(Write(verb, plural, name))
        await self._live()
        if plural == EVENTS.plural:
            return act()
        self._count += 1
        write = Write(verb, plural, name)
        fault = self._fault(self._count, write)
        if fault is Fault.KILLED_BEFORE:
            self.killed.set()
            await self._never.wait()
        if fault is Fault.FORBIDDEN:
            raise RefusedError("the API server refused: exceeded quota: pods")
        if fault is Fault.REFUSED:
            raise LostError("the API server answered 500")
        if fault is Fault.BUSY:
            raise TransientError("the API server answered 429", retry_after=1)
        if fault is Fault.CONFLICT and verb == "patch":
            raise ConflictError("the object has been modified")
        self._cluster.writes.append(write)
        with self._cluster.acting(OPERATOR):
            made = act()
        if fault is Fault.KILLED_AFTER:
            self.killed.set()
        if fault is Fault.LOST:
            raise LostError("no answer from the API server")
        await self._travel()
        await self._live()
        if self.away:
            raise LostError("no answer from the API server")
        return made

    async def get(self, resource: Resource, namespace: str, name: str) -> JSON:
        await self._pause()
        return self._cluster.get(resource, namespace, name)

    async def list(
        self, resource: Resource, namespace: str = "", selector: str = "", fields: str = ""
    ) -> tuple[Sequence[JSON], str]:
        await self._pause()
        version = str(self._cluster.version)
        found = self._cluster.all(resource, namespace, selector)
        await self._pause()
        return [each for each in found if _selected(each, fields)], version

    async def watch(
        self, resource: Resource, namespace: str, selector: str, resource_version: str
    ) -> AsyncIterator[tuple[str, JSON]]:
        await self._pause()
        began = self._cuts

        def cut() -> bool:
            return self._cuts != began

        stream = self._cluster.watch(resource, namespace, selector, int(resource_version), cut)
        async for event in stream:
            await self._pause()
            await self._flowing.wait()
            if cut():
                return
            yield event

    async def create(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        def act() -> JSON:
            return self._cluster.create(resource, namespace, body)

        made: JSON = await self._write("create", resource.plural, body["metadata"]["name"], act)
        return made

    async def apply(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        def act() -> JSON:
            return self._cluster.apply(resource, namespace, body)

        made: JSON = await self._write("apply", resource.plural, body["metadata"]["name"], act)
        return made

    async def try_apply(self, resource: Resource, namespace: str, body: JSON) -> None:
        """What a dry run is refused with, if anything."""
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, operations: Sequence[JSON]
    ) -> JSON:
        def act() -> JSON:
            return self._cluster.json_patch(resource, namespace, name, operations)

        made: JSON = await self._write("patch", resource.plural, name, act)
        return made

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        version: str = "",
    ) -> JSON:
        def act() -> JSON:
            return self._cluster.patch_status(resource, namespace, name, status, version)

        made: JSON = await self._write("patch", f"{resource.plural}/status", name, act)
        return made

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str = "", version: str = ""
    ) -> None:
        def act() -> None:
            self._cluster.delete(resource, namespace, name, uid, version)

        await self._write("delete", resource.plural, name, act)
