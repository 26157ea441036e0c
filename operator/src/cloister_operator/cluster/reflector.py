"""A mirror of one kind of objects: list, then watch, for ever."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from ..api.common import JSON
from ..errors import OperatorError
from ..metrics import WATCH_FAILURES
from .api import Api, ExpiredError, backoff
from .resources import Resource

log = logging.getLogger(__name__)

_FORGET_FAILURES_AFTER = 30.0


class Sink(Protocol):
    """Where the mirrored objects go."""

    def replace(self, objects: Iterable[JSON], version: int, namespace: str = "") -> None:
        """All objects of the namespace at a resourceVersion; those not among them are gone."""
        ...

    def put(self, obj: JSON) -> None:
        """An object was made or changed."""
        ...

    def remove(self, obj: JSON) -> None:
        """An object was deleted."""
        ...


class Reflector:
    """Keeps a sink equal to the objects of a kind in a namespace."""

    def __init__(
        self, api: Api, resource: Resource, namespace: str, selector: str, sink: Sink
    ) -> None:
        self._api = api
        self._resource = resource
        self._namespace = namespace
        self._selector = selector
        self._sink = sink
        self.synced = asyncio.Event()
        """Set once the first list has arrived."""

    async def run(self) -> None:
        """Mirror until cancelled. A watch that ends is taken up where it was; one that is too old
        starts again with a list, whose difference to what was known goes to the sink.
        """
        failures = 0
        version = ""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                if not version:
                    version = await self._list()
                version = await self._watch(version)
            except ExpiredError:
                version = ""
            except OperatorError as error:
                WATCH_FAILURES.inc()
                log.warning("watch of %s in %s: %s", self._resource.plural, self._namespace, error)
                version = ""
            failures = 0 if loop.time() - began > _FORGET_FAILURES_AFTER else failures + 1
            if failures or not version:
                # Also where each ends in order: what ends them at once would be asked without end.
                await backoff(failures)

    async def _list(self) -> str:
        objects, version = await self._api.list(self._resource, self._namespace, self._selector)
        self._sink.replace(objects, int(version), self._namespace)
        self.synced.set()
        return version

    async def _watch(self, version: str) -> str:
        handlers: dict[str, Callable[[JSON], None]] = {
            "ADDED": self._sink.put,
            "MODIFIED": self._sink.put,
            "DELETED": self._sink.remove,
        }
        stream = self._api.watch(self._resource, self._namespace, self._selector, version)
        async for kind, obj in stream:
            version = obj["metadata"]["resourceVersion"]
            handler = handlers.get(kind)
            if handler:
                handler(obj)
        return version
