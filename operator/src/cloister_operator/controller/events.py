"""Kubernetes Events about what happened to an object, posted in the background.

What happens to an object for the same reason again is added to the Event that is there, seldom: a
thing that flaps floods nobody. The Event's name says what it is about, so that the next operator
goes on with it.
"""

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from .. import metrics, names
from ..api.common import JSON, ObjectMeta
from ..api.conditions import timestamp
from ..cluster.api import Api
from ..cluster.resources import EVENTS
from ..errors import ConflictError, NotFoundError, OperatorError

log = logging.getLogger(__name__)

Type = Literal["Normal", "Warning"]
REMEMBERED: Final = 2000
FIRST_PAUSE: Final = 60.0
LONGEST_PAUSE: Final = 600.0
"""Between two writes of one Event; it doubles from the first to this."""
NAMESPACES: Final = 1000
"""Namespaces whose buckets are remembered."""


@dataclass(frozen=True)
class Rate:
    """Events of one namespace: so many a second, and so many at once after a rest."""

    per_second: float
    burst: float


RATES: Final[dict[Type, Rate]] = {"Normal": Rate(10.0, 100.0), "Warning": Rate(20.0, 500.0)}
"""What is above is shed: sessions by the thousand need the API server. By namespace, so that no
tenant's flood takes from what others are told.
"""


@dataclass
class _Note:
    """One Event, and what of it is still to be said."""

    kind: str
    subject: ObjectMeta
    reason: str
    message: str
    type: Type
    first: str
    last: str
    count: int = 1
    posted: int = 0
    """How many of `count` the API server knows of."""
    pause: float = FIRST_PAUSE
    not_before: float = 0.0
    due: bool = False

    @property
    def name(self) -> str:
        """The same whoever posts it."""
        text = f"{self.subject.uid}/{self.reason}/{self.type}"
        return f"{self.subject.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def body(self, instance: str) -> JSON:
        """The Event."""
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": self.name},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": self.kind,
                "namespace": self.subject.namespace,
                "name": self.subject.name,
                "uid": self.subject.uid,
            },
            "reason": self.reason,
            "message": self.message,
            "type": self.type,
            "firstTimestamp": self.first,
            "lastTimestamp": self.last,
            "count": self.count,
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": instance,
            "source": {"component": names.FIELD_MANAGER},
        }


class Recorder:
    """Posts Events one after the other; never makes its caller wait.

    Events are for people: when too many wait, or the API server refuses one, it is dropped.
    """

    def __init__(self, api: Api, pod_name: str, clock: Callable[[], datetime]) -> None:
        self._api = api
        self._pod_name = pod_name
        self._clock = clock
        self._notes: OrderedDict[tuple[str, str, str], _Note] = OrderedDict()
        self._due: list[tuple[float, int, _Note]] = []
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._buckets: OrderedDict[tuple[str, Type], tuple[float, float]] = OrderedDict()
        """By namespace and type: tokens, and when there were as many."""

    def record(
        self,
        kind: str,
        subject: ObjectMeta,
        reason: str,
        message: str,
        type_: Type = "Normal",
    ) -> None:
        """Say that something happened to an object of ours."""
        now, seconds = timestamp(self._clock()), asyncio.get_running_loop().time()
        key = (subject.uid, reason, type_)
        note = self._notes.get(key)
        if note is None:
            if not self._may(subject.namespace, type_, seconds):
                metrics.EVENTS.labels("dropped").inc()
                return
            note = _Note(kind, subject, reason, message[:1000], type_, now, now)
            self._notes[key] = note
            self._bound()
        else:
            self._notes.move_to_end(key)
            note.count += 1
            note.message, note.last = message[:1000], now
        if note.due:
            return
        if len(self._due) >= REMEMBERED:
            metrics.EVENTS.labels("dropped").inc()
        else:
            note.due = True
            heapq.heappush(self._due, (max(seconds, note.not_before), next(self._order), note))
            self._wake.set()

    async def run(self) -> None:
        """Post until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            pause = self._due[0][0] - loop.time() if self._due else None
            if pause is None or pause > 0:
                # Not wait_for: it swallows a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                continue
            _, _, note = heapq.heappop(self._due)
            note.due = False
            # Before it is posted: what is added meanwhile waits, too.
            note.not_before = loop.time() + note.pause
            note.pause = min(LONGEST_PAUSE, 2 * note.pause)
            await self._post(note)

    async def _post(self, note: _Note) -> None:
        count = note.count
        try:
            outcome = "repeated" if note.posted or not await self._create(note) else "posted"
            if outcome == "repeated":
                await self._repeat(note)
        except OperatorError as error:
            outcome = "dropped"
            log.debug("an event was dropped: %s", error)
        else:
            # What was added while the write was under way is for the next one.
            note.posted = max(note.posted, count)
        metrics.EVENTS.labels(outcome).inc()

    async def _create(self, note: _Note) -> bool:
        """Whether it was not there yet, from this operator or the one before."""
        try:
            await self._api.create(EVENTS, note.subject.namespace, note.body(self._pod_name))
        except ConflictError:
            found, _ = await self._api.list(
                EVENTS, note.subject.namespace, fields=f"metadata.name={note.name}"
            )
            note.count += sum(int(each.get("count") or 1) for each in found)
            return False
        return True

    async def _repeat(self, note: _Note) -> None:
        changes = {
            "count": note.count,
            "message": note.message,
            "lastTimestamp": note.last,
            "reportingInstance": self._pod_name,
        }
        operations = [
            {"op": "add", "path": f"/{key}", "value": value} for key, value in changes.items()
        ]
        try:
            await self._api.json_patch(EVENTS, note.subject.namespace, note.name, operations)
        except NotFoundError:
            # The API server forgets Events after an hour.
            await self._create(note)

    def _may(self, namespace: str, type_: Type, seconds: float) -> bool:
        rate, key = RATES[type_], (namespace, type_)
        tokens, since = self._buckets.pop(key, (rate.burst, seconds))
        tokens = min(rate.burst, tokens + (seconds - since) * rate.per_second)
        allowed = tokens >= 1
        self._buckets[key] = tokens - allowed, seconds
        if len(self._buckets) > NAMESPACES:
            self._buckets.popitem(last=False)
        return allowed

    def _bound(self) -> None:
        if len(self._notes) > REMEMBERED:
            self._notes.popitem(last=False)
