"""No write without the right to lead, checked at the last moment before it is sent."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from ..api.common import JSON
from ..errors import TransientError
from .api import Api
from .resources import Resource


class Fenced:
    """An Api that reads always and writes only while `leads` says so; else TransientError.

    A process that was stopped and goes on later may be in the middle of anything: its timers tell
    it too late that its time is over, this does not.
    """

    def __init__(self, api: Api, leads: Callable[[], bool]) -> None:
        self._api = api
        self._leads = leads

    def _check(self) -> None:
        if not self._leads():
            raise TransientError("this operator does not lead any more")

    async def get(self, resource: Resource, namespace: str, name: str) -> JSON:
        return await self._api.get(resource, namespace, name)

    async def list(
        self, resource: Resource, namespace: str = "", selector: str = "", fields: str = ""
    ) -> tuple[Sequence[JSON], str]:
        return await self._api.list(resource, namespace, selector, fields)

    def watch(
        self, resource: Resource, namespace: str, selector: str, resource_version: str
    ) -> AsyncIterator[tuple[str, JSON]]:
        return self._api.watch(resource, namespace, selector, resource_version)

    async def create(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        self._check()
        return await self._api.create(resource, namespace, body)

    async def apply(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        self._check()
        return await self._api.apply(resource, namespace, body)

    async def try_apply(self, resource: Resource, namespace: str, body: JSON) -> None:
        await self._api.try_apply(resource, namespace, body)

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, operations: Sequence[JSON]
    ) -> JSON:
        self._check()
        return await self._api.json_patch(resource, namespace, name, operations)

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        version: str = "",
    ) -> JSON:
        self._check()
        return await self._api.patch_status(resource, namespace, name, status, version)

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str = "", version: str = ""
    ) -> None:
        self._check()
        await self._api.delete(resource, namespace, name, uid, version)
