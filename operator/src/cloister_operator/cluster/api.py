"""The verbs of the Kubernetes API, with its answers turned into this package's errors once.

Bodies are plain dicts, encoded and decoded with orjson, and sent over a session of our own: the
official client's models, and its walk through every body, cost several times more than the rest of
a call.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Protocol

import aiohttp
import kopf
import orjson

from .. import names
from ..api import conditions
from ..api.common import JSON
from ..errors import (
    ConflictError,
    LostError,
    NotFoundError,
    OperatorError,
    PermanentError,
    QuotaError,
    RefusedError,
    TransientError,
)
from ..metrics import api_write
from .clock import ServerClock
from .login import Find, Login, find
from .resources import PODS, Resource

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
_TIMEOUT = aiohttp.ClientTimeout(total=15, connect=3)
_WATCH_SECONDS = 75
"""After this the API server ends a watch in order, and the next one goes on where it was."""
_WATCH_SILENCE_SECONDS = 90
"""Longer: of kinds that seldom change it tells nothing for minutes, not even bookmarks."""
_TOO_OLD = 410
_EXCEEDED = re.compile(r"exceeded quota: ([a-z0-9.-]+), requested: .*", re.DOTALL)
"""How the API server says that a ResourceQuota is used up; it has no reason of its own for it."""
_PAGE = 500
"""Objects listed at once: ten thousand pods as one answer would take hundreds of megabytes."""
_READ_OF_STATUS = ("phase", "podIP", "reason", "message")
"""Of a listed pod, beside conditions and containers."""
_CONNECTIONS = 200
"""Writes at the same time: more than the API server lets one client have."""


class ExpiredError(OperatorError):
    """The watch's resourceVersion is too old: list again."""


class Api(Protocol):
    """What the operator asks of the API server."""

    async def get(self, resource: Resource, namespace: str, name: str) -> JSON:
        """An object; raises NotFoundError."""
        ...

    async def list(
        self, resource: Resource, namespace: str = "", selector: str = "", fields: str = ""
    ) -> tuple[Sequence[JSON], str]:
        """All objects, and the resourceVersion to watch from.

        `selector` is of labels, `fields` of fields.
        """
        ...

    def watch(
        self, resource: Resource, namespace: str, selector: str, resource_version: str
    ) -> AsyncIterator[tuple[str, JSON]]:
        """Events (type, object) until the server ends the watch; raises ExpiredError."""
        ...

    async def create(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        """Make an object; raises ConflictError when the name is taken."""
        ...

    async def apply(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        """Server-side apply, as owner of all its fields."""
        ...

    async def try_apply(self, resource: Resource, namespace: str, body: JSON) -> None:
        """Ask whether `apply` would be admitted, and change nothing; raises RefusedError or
        PermanentError with the API server's words when it would not.
        """
        ...

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, operations: Sequence[JSON]
    ) -> JSON:
        """Patch; raises ConflictError when a `test` fails."""
        ...

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        version: str = "",
    ) -> JSON:
        """Merge into the status; None removes a field.

        With `version` only if the object is unchanged; otherwise raises ConflictError.
        """
        ...

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str = "", version: str = ""
    ) -> None:
        """Delete; with `uid` only that very object, with `version` only unchanged.

        Raises ConflictError when the precondition fails, NotFoundError.
        """
        ...


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body).get("message", ""))[:500]
    except (orjson.JSONDecodeError, AttributeError):
        return body[:200].decode(errors="replace")


def error_of(
    status: int,
    body: bytes,
    retry_after: str | None = None,
    *,
    patch_test: bool = False,
    write: bool = False,
) -> OperatorError:
    """The error that an answer of the API server stands for.

    `retry_after` is its header of that name; `patch_test`: it answers a JSON-Patch; `write`: it
    answers something that may have changed an object.
    """
    message = _message(body)
    if status == 404:
        return NotFoundError(message)
    if status == _TOO_OLD:
        # Of a list in pages, the rest of which is of a state that is no longer kept.
        return TransientError(f"the API server answered {status}: {message}")
    # A JSON-Patch whose `test` fails is answered 422, as an object that breaks the schema is.
    if status == 409 or (status == 422 and patch_test):
        return ConflictError(message)
    if status == 429 or status >= 500:
        wait = float(retry_after) if retry_after and retry_after.isdigit() else None
        # It answers so as well when etcd, or what is between it and us, did not answer in time:
        # what was written is there then, or comes later.
        kind = LostError if write and status != 429 else TransientError
        error = kind(f"the API server answered {status}: {message}", wait)
        error.outcome = "throttled" if status == 429 else error.outcome
        return error
    if status == 401:
        return TransientError(f"the API server does not know the operator: {message}")
    if status == 403 and (exceeded := _EXCEEDED.search(message)):
        return QuotaError(f"{exceeded[0]} (a ResourceQuota of the namespace)", exceeded[1])
    if status == 403:
        return RefusedError(f"the API server refused: {message}")
    return PermanentError(conditions.REJECTED, message or f"the API server answered {status}")


class HttpApi:
    """The API over HTTP."""

    def __init__(self, login: Login, tls: ssl.SSLContext) -> None:
        self._login = login
        self._tls = tls
        self.clock = ServerClock()
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def connect(cls, find: Find = find) -> "HttpApi":
        """As whom `find` finds; raises kopf.LoginError when that is nobody."""
        found = await asyncio.to_thread(find)
        if found is None:
            raise kopf.LoginError("there is neither a ServiceAccount's token nor a kubeconfig")
        return cls(Login(found, find), await asyncio.to_thread(found.as_ssl_context))

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=self._tls),
                # Proxies named in the environment are for the internet, not for the API server.
                trust_env=False,
                # One line of a watch is one object.
                read_bufsize=2**21,
            )
        return self._session

    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        headers = {
            **await self._login.headers(),
            "Accept": "application/json",
            "Content-Type": content_type,
            # Beside an API server on the same network, compressing costs more than it saves.
            "Accept-Encoding": "identity",
        }
        asked = self.clock.own()
        response = await self._connected().request(
            method,
            f"{self._login.server}{path}",
            params=query or None,
            headers=headers,
            data=orjson.dumps(body) if body is not None else None,
            timeout=timeout,
        )
        if response.ok:
            # What is between it and us may answer in its place with a clock of its own.
            self.clock.heard(response.headers.get("Date"), asked)
        return response

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> JSON:
        write = method != "GET"
        try:
            response = await self._open(method, path, query or {}, body, content_type, _TIMEOUT)
            content = await response.read()
            if response.status < 400:
                found: JSON = orjson.loads(content)
                return found
        except aiohttp.ClientConnectorError as error:
            raise TransientError(f"the API server cannot be reached: {error}") from error
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            kind = LostError if write else TransientError
            raise kind(f"no answer from the API server: {error!r}") from error
        retry_after = response.headers.get("Retry-After")
        patches = content_type == JSON_PATCH
        raise error_of(response.status, content, retry_after, patch_test=patches, write=write)

    async def get(self, resource: Resource, namespace: str, name: str) -> JSON:
        return await self._call("GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str = "", selector: str = "", fields: str = ""
    ) -> tuple[Sequence[JSON], str]:
        given = {"labelSelector": selector, "fieldSelector": fields, "limit": str(_PAGE)}
        query = {key: value for key, value in given.items() if value}
        path = resource.path(namespace)
        found = await self._call("GET", path, query)
        items = [_trimmed(resource, each) for each in found.get("items") or []]
        while more := found["metadata"].get("continue"):
            found = await self._call("GET", path, {**query, "continue": more})
            items += [_trimmed(resource, each) for each in found.get("items") or []]
        return items, found["metadata"]["resourceVersion"]

    async def watch(
        self, resource: Resource, namespace: str, selector: str, resource_version: str
    ) -> AsyncIterator[tuple[str, JSON]]:
        query = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
            **({"labelSelector": selector} if selector else {}),
        }
        # The API server would have ended it before: a longer silence is a dead connection.
        timeout = aiohttp.ClientTimeout(total=None, connect=3, sock_read=_WATCH_SILENCE_SECONDS)
        try:
            response = await self._open(
                "GET", resource.path(namespace), query, None, "application/json", timeout
            )
            async with response:
                if response.status == _TOO_OLD:
                    raise ExpiredError("the watch is too old")
                if response.status >= 400:
                    raise error_of(response.status, await response.read())
                async for line in response.content:
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        if event["object"].get("code") == _TOO_OLD:
                            raise ExpiredError("the watch is too old")
                        raise TransientError(f"watch: {event['object'].get('message')}")
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            raise TransientError(f"the watch broke: {error!r}") from error

    async def create(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        with api_write("create", resource.plural):
            return await self._call("POST", resource.path(namespace), body=body)

    async def apply(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        path = resource.path(namespace, body["metadata"]["name"])
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        with api_write("apply", resource.plural):
            return await self._call("PATCH", path, query, body, APPLY_PATCH)

    async def try_apply(self, resource: Resource, namespace: str, body: JSON) -> None:
        path = resource.path(namespace, body["metadata"]["name"])
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true", "dryRun": "All"}
        await self._call("PATCH", path, query, body, APPLY_PATCH)

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, operations: Sequence[JSON]
    ) -> JSON:
        with api_write("patch", resource.plural):
            return await self._call(
                "PATCH",
                resource.path(namespace, name),
                body=list(operations),
                content_type=JSON_PATCH,
            )

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        version: str = "",
    ) -> JSON:
        body: JSON = {"status": dict(status)}
        if version:
            body["metadata"] = {"resourceVersion": version}
        with api_write("patch", f"{resource.plural}/status"):
            return await self._call(
                "PATCH",
                resource.path(namespace, name, "status"),
                body=body,
                content_type=MERGE_PATCH,
            )

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str = "", version: str = ""
    ) -> None:
        preconditions = {
            **({"uid": uid} if uid else {}),
            **({"resourceVersion": version} if version else {}),
        }
        body: JSON = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if preconditions:
            body["preconditions"] = preconditions
        with api_write("delete", resource.plural):
            await self._call("DELETE", resource.path(namespace, name), body=body)


def _trimmed(resource: Resource, item: JSON) -> JSON:
    """What the operator may read of a listed object: all of a long list is held at once."""
    item["metadata"].pop("managedFields", None)
    if resource is PODS and "spec" in item:
        spec, status = item["spec"], item.get("status") or {}
        volumes = spec.get("volumes") or []
        kept = [
            each
            for each in volumes
            if "persistentVolumeClaim" in each or each["name"] == names.IDENTITY_VOLUME
        ]
        item["spec"] = {
            "nodeName": spec.get("nodeName"),
            "hostUsers": spec.get("hostUsers"),
            "volumes": kept,
        }
        item["status"] = {
            **{key: status[key] for key in _READ_OF_STATUS if key in status},
            "conditions": [
                each
                for each in status.get("conditions") or []
                if "reason" in each or each.get("type") == "Ready"
            ],
            "containerStatuses": [
                {key: each[key] for key in ("name", "state", "restartCount") if key in each}
                for each in status.get("containerStatuses") or []
            ],
        }
    return item


async def backoff(attempt: int) -> None:
    """Wait before repeating a read: 0.1 s, doubling to 5 s, however often it was repeated."""
    await asyncio.sleep(min(5.0, 0.1 * 2 ** min(attempt, 10)))
