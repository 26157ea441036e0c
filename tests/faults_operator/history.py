"""Every write of a real API server, in its order, as etcd keeps it.

It is what support.invariants looks at: the same surface as FakeCluster has.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import orjson

from cloister_operator.cluster.resources import (
    CONFIG_MAPS,
    ENVIRONMENTS,
    LEASES,
    NETWORK_POLICIES,
    PODS,
    SECRETS,
    SESSIONS,
    VOLUME_CLAIMS,
    Resource,
)
from support.fake_api import Change

JSON = dict[str, Any]
_PREFIX = "/registry/"
_KINDS: dict[str, Resource] = {
    "pods": PODS,
    "secrets": SECRETS,
    "configmaps": CONFIG_MAPS,
    "leases": LEASES,
    "networkpolicies": NETWORK_POLICIES,
    "persistentvolumeclaims": VOLUME_CLAIMS,
    "cloister.dev/environments": ENVIRONMENTS,
    "cloister.dev/sessions": SESSIONS,
}


def _parse(key: str) -> tuple[Resource, str, str] | None:
    kind, _, rest = key.removeprefix(_PREFIX).partition("/")
    if kind == "cloister.dev":
        plural, _, rest = rest.partition("/")
        kind = f"{kind}/{plural}"
    namespace, _, name = rest.partition("/")
    return (_KINDS[kind], namespace, name) if kind in _KINDS and name else None


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class History:
    """The present state, and who wants to know of changes."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[tuple[str, str], JSON]] = {}
        self._moved = asyncio.Event()
        self.listeners: list[Callable[[Change], None]] = []
        """Called for each write in the order of writes."""
        self.actor: Callable[[Resource, str, str], str] = lambda *_: ""
        """Who deletes an object, by kind, namespace and name."""
        self.wrong: list[str] = []
        """What listeners raised."""

    def peek(self, resource: Resource, namespace: str, name: str) -> JSON | None:
        """An object, not to be changed."""
        return self._objects.get(resource, {}).get((namespace, name))

    def peek_all(self, resource: Resource, namespace: str) -> list[JSON]:
        """Objects, not to be changed."""
        found = self._objects.get(resource, {})
        return [obj for key, obj in found.items() if key[0] == namespace]

    def all(self, resource: Resource, namespace: str = "", selector: str = "") -> list[JSON]:
        """Objects by name; no selector is understood."""
        assert not selector
        found = sorted(self._objects.get(resource, {}).items())
        return [obj for key, obj in found if namespace in ("", key[0])]

    async def until(self, what: str, look: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait for a change after which `look` finds something; AssertionError names `what`."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._moved.clear()
                    found = look()
                    if found:
                        return found
                    await self._moved.wait()
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {what}") from None

    async def quiet(self, seconds: float) -> None:
        """Wait until nothing has been written for so long."""
        while True:
            self._moved.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._moved.wait()
            except TimeoutError:
                return

    async def follow(self, etcd: str, started: asyncio.Event) -> None:
        """Follow the etcd at this URL until cancelled; `started` is set when no write is missed."""
        end = _PREFIX[:-1] + chr(ord("/") + 1)
        request = {"key": _encoded(_PREFIX), "range_end": _encoded(end), "prev_kv": True}
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(trust_env=False, timeout=timeout) as session,
            session.post(
                f"{etcd}/v3/watch", data=json.dumps({"create_request": request})
            ) as stream,
        ):
            assert stream.status == 200, await stream.text()
            async for line in _lines(stream.content):
                started.set()
                for event in orjson.loads(line)["result"].get("events", ()):
                    self._take(event)
                self._moved.set()

    def _take(self, event: JSON) -> None:
        found = _parse(base64.b64decode(event["kv"]["key"]).decode())
        if found is None:
            return
        resource, namespace, name = found
        version = int(event["kv"]["mod_revision"])
        objects = self._objects.setdefault(resource, {})
        before, after = objects.pop((namespace, name), None), None
        if event.get("type") != "DELETE":
            after = orjson.loads(base64.b64decode(event["kv"]["value"]))
            after["metadata"]["resourceVersion"] = str(version)
            objects[namespace, name] = after
        actor = self.actor(resource, namespace, name)
        change = Change(version, resource, namespace, before, after, actor)
        for listener in self.listeners:
            try:
                listener(change)
            except Exception as error:
                self.wrong.append(f"{resource.plural} {name}: {error!r}")


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length: some objects are longer than aiohttp's own reader allows."""
    kept = b""
    async for piece in content.iter_any():
        *whole, kept = (kept + piece).split(b"\n")
        for line in whole:
            yield line


@contextlib.asynccontextmanager
async def history(etcd: str) -> AsyncIterator[History]:
    """A History that follows this etcd."""
    made, started = History(), asyncio.Event()
    task = asyncio.create_task(made.follow(etcd, started))
    try:
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            await task
        yield made
        assert not task.done(), "etcd ended"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
