"""Kubernetes Events about what happened to an object, posted in the background."""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Literal

from .. import names
from ..api.common import JSON, ObjectMeta
from ..api.conditions import timestamp
from ..cluster.api import Api
from ..cluster.resources import EVENTS
from ..errors import OperatorError

log = logging.getLogger(__name__)

_QUEUE = 1000
_REMEMBERED = 2000


class Recorder:
    """Posts each (object, reason, message) once; never makes its caller wait.

    Events are for people: when too many wait, or the API server refuses one, it is dropped.
    """

    def __init__(self, api: Api, pod_name: str, clock: Callable[[], datetime]) -> None:
        self._api = api
        self._pod_name = pod_name
        self._clock = clock
        self._queue: asyncio.Queue[tuple[str, JSON]] = asyncio.Queue(_QUEUE)
        self._seen: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def record(
        self,
        kind: str,
        subject: ObjectMeta,
        reason: str,
        message: str,
        type_: Literal["Normal", "Warning"] = "Normal",
    ) -> None:
        """Say that something happened to an object of ours."""
        fingerprint = (subject.uid, reason, message)
        if fingerprint in self._seen or self._queue.full():
            return
        self._seen[fingerprint] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        now = timestamp(self._clock())
        body: JSON = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{subject.name}.{secrets.token_hex(6)}"},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": kind,
                "namespace": subject.namespace,
                "name": subject.name,
                "uid": subject.uid,
            },
            "reason": reason,
            "message": message[:1000],
            "type": type_,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": self._pod_name,
            "source": {"component": names.FIELD_MANAGER},
        }
        self._queue.put_nowait((subject.namespace, body))

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            namespace, body = await self._queue.get()
            try:
                await self._api.create(EVENTS, namespace, body)
            except OperatorError as error:
                log.debug("an event was dropped: %s", error)
