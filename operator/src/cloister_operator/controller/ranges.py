"""Follows the cluster's own addresses: nodes, pods, Services, API servers, load balancers.

And with them what listens there, for sandboxes to try.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from ..api.common import JSON
from ..cache import Key
from ..cluster.api import Api, backoff
from ..cluster.reflector import Reflector
from ..cluster.resources import (
    ENDPOINT_SLICES,
    INGRESSES,
    NODES,
    SERVICE_CIDRS,
    SERVICES,
    Resource,
)
from ..errors import NotFoundError, OperatorError
from ..plan import proving, ranges
from ..plan.proving import Landmark
from ..plan.spans import Network
from ..settings import Settings
from ..tasks import Part, together

log = logging.getLogger(__name__)

SETTLES_SECONDS = 1.0
"""Changes that come together, as when many nodes join, are one: each rewrites policies."""
ABSENT_SECONDS = 300.0
"""After this a kind that the API server did not know is asked for again."""

_SHOWN = 20
"""Ranges in a line of the log."""
_AT_ONCE = 1000
"""Ranges that are joined within some milliseconds: more of them are beside the event loop, which
has leases to renew and sessions to give."""


@dataclass(frozen=True)
class _Source:
    """Objects that tell of the cluster's addresses."""

    resource: Resource
    read: Callable[[JSON], frozenset[Network]]
    listens: Callable[[JSON], frozenset[Landmark]] = lambda _: frozenset()
    claims: Callable[[JSON], frozenset[Network]] = lambda _: frozenset()
    namespace: str = ""
    selector: str = ""
    optional: bool = False
    """Whether there are clusters that do not know the kind."""


_SOURCES = (
    _Source(NODES, ranges.of_node, proving.of_node),
    # Older clusters have none: every Service's own address is known all the same.
    _Source(SERVICE_CIDRS, ranges.of_service_cidr, optional=True),
    _Source(SERVICES, ranges.of_service, proving.of_service, ranges.claimed_by_service),
    _Source(
        ENDPOINT_SLICES,
        ranges.of_endpoint_slice,
        proving.of_endpoint_slice,
        namespace="default",
        selector="kubernetes.io/service-name=kubernetes",
    ),
    _Source(INGRESSES, ranges.of_ingress, optional=True),
)


_Found = tuple[frozenset[Network], frozenset[Landmark], frozenset[Network]]
"""Addresses, what listens at them, and addresses that are somebody's word alone."""


class _Sink:
    """cluster.reflector.Sink that keeps nothing of an object but its addresses."""

    def __init__(self, source: _Source, changed: Callable[[], None]) -> None:
        self._source = source
        self._changed = changed
        self.synced = False
        self.found: dict[Key, _Found] = {}

    def replace(self, objects: Iterable[JSON], version: int, namespace: str = "") -> None:  # noqa: ARG002
        """See Sink."""
        found = {_key(each): self._read(each) for each in objects}
        news = not self.synced or found != self.found
        self.synced, self.found = True, found
        if news:
            self._changed()

    def put(self, obj: JSON) -> None:
        """See Sink."""
        key, found = _key(obj), self._read(obj)
        if self.found.get(key) != found:
            self.found[key] = found
            self._changed()

    def remove(self, obj: JSON) -> None:
        """See Sink."""
        if self.found.pop(_key(obj), None):
            self._changed()

    def _read(self, obj: JSON) -> _Found:
        source = self._source
        return source.read(obj), source.listens(obj), source.claims(obj)


class Ranges:
    """The cluster's own addresses as ranges, kept current by watches.

    `current` is None until every kind of object was listed once: nothing that keeps sandboxes off
    the cluster may be made of half of it.
    """

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api = api
        self._own = frozenset(ranges.networks([*settings.egress_extra_ranges, settings.pod_ip]))
        self._sinks = {each: _Sink(each, self._changed) for each in _SOURCES}
        self._listeners: list[Callable[[], None]] = []
        self._due = asyncio.Event()
        """Set when something has changed that `current` does not say yet."""
        self.current: tuple[str, ...] | None = None
        self.landmarks: tuple[Landmark, ...] = ()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call back whenever `current` has changed."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Follow until cancelled."""
        parts: dict[str, Part] = {
            source.resource.plural: partial(self._follow, source, sink)
            for source, sink in self._sinks.items()
        }
        await together(parts | {"ranges": self._publish})

    async def _follow(self, source: _Source, sink: _Sink) -> None:
        failures = 0
        while source.optional:
            try:
                await self._api.list(source.resource, source.namespace, source.selector)
                break
            except NotFoundError:
                sink.replace((), 0)
                await asyncio.sleep(ABSENT_SECONDS)
            except OperatorError as error:
                log.warning("%s cannot be listed: %s", source.resource.plural, error)
                failures += 1
                await backoff(failures)
        reflector = Reflector(self._api, source.resource, source.namespace, source.selector, sink)
        await reflector.run()

    def _changed(self) -> None:
        if all(each.synced for each in self._sinks.values()):
            self._due.set()

    async def _publish(self) -> None:
        """Keep `current` as what is followed says. Whatever goes wrong with that ends the operator:
        sandboxes would not be kept from what has become the cluster's own since.
        """
        while True:
            await self._due.wait()
            if self.current is not None:
                await asyncio.sleep(SETTLES_SECONDS)
            self._due.clear()
            every = self._found()
            if len(every) <= _AT_ONCE:
                self._take(ranges.joined(every))
            else:
                self._take(await asyncio.to_thread(ranges.joined, every))

    def _found(self) -> set[Network]:
        """Every address that is the cluster's own; notes what listens there."""
        every, listening = set(self._own), set[Landmark]()
        claims: dict[str, set[Network]] = {}
        for sink in self._sinks.values():
            for (namespace, _), (found, listens, claimed) in sink.found.items():
                every |= found
                listening |= listens
                if claimed:
                    claims.setdefault(namespace, set()).update(claimed)
        believed = ranges.believed(claims)
        left_out = len(set[Network]().union(*claims.values()) - believed)
        if left_out:
            log.warning("Services claim too many addresses: %d of them are left out", left_out)
        every |= believed
        self.landmarks = tuple(sorted(listening))
        return every

    def _take(self, joined: ranges.Joined) -> None:
        current = joined.ranges
        if current == self.current:
            return
        if joined.wider:
            log.warning(
                "the cluster has more than %d ranges on the internet: larger ones which hold them "
                "are closed to sandboxes",
                ranges.MAX_PUBLIC,
            )
        shown = ", ".join(current[:_SHOWN])
        log.info("the cluster's own addresses are %d ranges: %s", len(current), shown)
        self.current = current
        for each in self._listeners:
            each()


def _key(obj: JSON) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
