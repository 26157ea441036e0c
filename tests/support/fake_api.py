"""An API server in memory, as faithful as the operator's decisions need, and hooks to break it.

`FakeCluster` is the server and the parts of a cluster that act by themselves: the garbage
collector and a kubelet. A `Connection` is one operator's way to it; its faults lose answers or
kill the operator at a chosen write, and its watches can be held and cut. Who wants to know of every
write as the server accepts it puts itself in `listeners`. tests/e2e/test_fake_api.py compares the
answers with those of a real API server.
"""

import asyncio
import contextlib
import itertools
import random
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar

import orjson

from cloister_operator.cluster.api import ExpiredError
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    EVENTS,
    NAMESPACES,
    PODS,
    SECRETS,
    SESSIONS,
    VOLUME_CLAIMS,
    Resource,
)
from cloister_operator.errors import (
    ConflictError,
    LostError,
    NotFoundError,
    OperatorError,
    RefusedError,
    TransientError,
)

JSON = dict[str, Any]
T = TypeVar("T")
OPERATOR = "operator"
"""Who acts when a Connection writes."""
_CUSTOM = (ENVIRONMENTS, SESSIONS)


class Fault(Enum):
    """What goes wrong with a write."""

    REFUSED = "nothing happens, and the answer is an error to be repeated"
    FORBIDDEN = "nothing happens: a quota or a policy is against it"
    BUSY = "nothing happens: too many requests, come again in a second"
    CONFLICT = "nothing happens to what is patched: somebody else wrote at the same time"
    LOST = "it happens, and no answer comes"
    KILLED_BEFORE = "the operator dies before it"
    KILLED_AFTER = "it happens, and the operator dies before it hears of it"


@dataclass(frozen=True)
class Write:
    """A write that reached the server."""

    verb: str
    plural: str
    name: str


@dataclass(frozen=True)
class Change:
    """A state that became another; None stands for absence. Neither is to be changed."""

    version: int
    resource: Resource
    namespace: str
    before: JSON | None
    after: JSON | None
    actor: str
    """Who did it: OPERATOR, or else."""


def _copy(value: T) -> T:
    """What arrives at the other end of a connection; several times faster than deepcopy."""
    made: T = orjson.loads(orjson.dumps(value))
    return made


def _matches(obj: JSON | None, selector: str) -> bool:
    if obj is None:
        return False
    labels = obj["metadata"].get("labels") or {}
    pairs = (part.split("=", 1) for part in selector.split(",") if part)
    return all(labels.get(key) == value for key, value in pairs)


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


class FakeCluster:
    """The server's state, and what happens in a cluster by itself."""

    def __init__(
        self,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        history: int = 10_000,
        namespaces: Mapping[str, Mapping[str, str]] | None = None,
        kubelet: bool = False,
        uids: Callable[[], str] = lambda: str(uuid.uuid4()),
        delay: Callable[[], float] | None = None,
    ) -> None:
        """`history`: changes that a watch can go back; `namespaces`: their labels by name;
        `kubelet`: start pods whose Secrets are there, and end those that are deleted; `delay`:
        seconds until the collector or the kubelet takes notice of a change (None: at once).
        """
        self._clock = clock
        self._objects: dict[Resource, dict[tuple[str, str], JSON]] = {}
        self._changes: deque[Change] = deque(maxlen=history)
        self._version = 100
        self._changed = asyncio.Event()
        self._addresses = itertools.count(1)
        self._uids = uids
        self._delay = delay
        self._due: set[Callable[[], None]] = set()
        self._forgotten = 0
        self._actor = ""
        self.listeners: list[Callable[[Change], None]] = []
        """Called at each change, before anybody else hears of it."""
        self.kubelet = kubelet
        self.collects = True
        """Whether objects go when their owner is gone."""
        self.ends_pods = True
        """Whether the kubelet ends pods that are deleted; otherwise they stay on their way."""
        self.starts_pods = True
        """Whether the kubelet starts pods."""
        self.writes: list[Write] = []
        """Writes in their order; Events, which nobody decides on, left out."""
        for name, labels in (namespaces or {}).items():
            body = {"metadata": {"name": name, "labels": dict(labels)}}
            self.create(NAMESPACES, "", body)
        self.writes.clear()

    # --- reading -----------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The newest resourceVersion."""
        return self._version

    def peek(self, resource: Resource, namespace: str, name: str) -> JSON | None:
        """An object, not to be changed."""
        return self._objects.get(resource, {}).get((namespace, name))

    def peek_all(self, resource: Resource, namespace: str) -> list[JSON]:
        """Objects, not to be changed, in the order in which they were made."""
        found = self._objects.get(resource, {})
        return [obj for key, obj in found.items() if key[0] == namespace]

    def get(self, resource: Resource, namespace: str, name: str) -> JSON:
        """A copy of an object; raises NotFoundError."""
        found = self.peek(resource, namespace, name)
        if found is None:
            raise NotFoundError(f"{resource.plural} {name} not found")
        return _copy(found)

    def all(self, resource: Resource, namespace: str = "", selector: str = "") -> list[JSON]:
        """Copies of objects, by name."""
        return [
            _copy(obj)
            for key, obj in sorted(self._objects.get(resource, {}).items())
            if namespace in ("", key[0]) and _matches(obj, selector)
        ]

    async def watch(
        self,
        resource: Resource,
        namespace: str,
        selector: str,
        after: int,
        ends: Callable[[], bool] = lambda: False,
    ) -> AsyncIterator[tuple[str, JSON]]:
        """Changes after a version, until `ends` says so at a change or at `wake`; raises
        ExpiredError when they are not kept.
        """
        while not ends():
            full = len(self._changes) == self._changes.maxlen
            if after < self._forgotten or (full and self._changes[0].version > after + 1):
                raise ExpiredError("the watch is too old")
            for change in self._changes_after(after):
                if ends():
                    return
                after = change.version
                mine = namespace in ("", change.namespace)
                if change.resource is not resource or not mine:
                    continue
                was, now = _matches(change.before, selector), _matches(change.after, selector)
                if now and change.after is not None:
                    yield ("MODIFIED" if was else "ADDED"), _copy(change.after)
                elif was and change.before is not None:
                    # A deletion is told with the state before it, and a version of its own.
                    gone = _copy(change.before)
                    gone["metadata"]["resourceVersion"] = str(change.version)
                    yield "DELETED", gone
            if not self._changes or self._changes[-1].version <= after:
                self._changed.clear()
                await self._changed.wait()

    def _changes_after(self, version: int) -> list[Change]:
        newer = itertools.takewhile(lambda each: each.version > version, reversed(self._changes))
        return list(newer)[::-1]

    def wake(self) -> None:
        """Let all watches look whether they end."""
        self._changed.set()

    def forget_history(self) -> None:
        """Compact: no watch can start at a version before this one."""
        self._forgotten = self._version
        self._changes.clear()

    # --- writing -----------------------------------------------------------------------------

    def create(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        """POST; raises ConflictError, and NotFoundError for a namespace that is not there."""
        if resource.namespaced and self.peek(NAMESPACES, "", namespace) is None:
            raise NotFoundError(f"namespace {namespace} not found")
        obj = _copy(body)
        name = obj["metadata"]["name"]
        if self.peek(resource, namespace, name) is not None:
            raise ConflictError(f"{resource.plural} {name} already exists")
        obj["metadata"] |= {
            "uid": self._uids(),
            "creationTimestamp": self._clock().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "generation": 1,
        }
        if resource.namespaced:
            obj["metadata"]["namespace"] = namespace
        if resource in _CUSTOM:
            obj.pop("status", None)
        if resource == PODS:
            obj["status"] = {"phase": "Pending"}
        self._store(resource, namespace, name, obj)
        return _copy(obj)

    def apply(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        """Server-side apply by the only manager: made, or merged."""
        name = body["metadata"]["name"]
        if self.peek(resource, namespace, name) is None:
            return self.create(resource, namespace, body)
        obj = self.get(resource, namespace, name)
        _merge(obj, body)
        return self._update(resource, namespace, name, obj)

    def json_patch(
        self, resource: Resource, namespace: str, name: str, operations: Sequence[JSON]
    ) -> JSON:
        """Raises ConflictError when an operation does not apply, as the real client does."""
        obj = self.get(resource, namespace, name)
        for operation in operations:
            _operate(obj, operation)
        return self._update(resource, namespace, name, obj)

    def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        version: str = "",
    ) -> JSON:
        """Merge-patch of the status subresource."""
        obj = self.get(resource, namespace, name)
        if version and version != obj["metadata"]["resourceVersion"]:
            raise ConflictError("the object has been modified")
        _merge(obj, {"status": dict(status)})
        return self._update(resource, namespace, name, obj)

    def patch_spec(self, resource: Resource, namespace: str, name: str, spec: JSON) -> JSON:
        """A person's merge-patch of the spec."""
        obj = self.get(resource, namespace, name)
        _merge(obj, {"spec": spec})
        return self._update(resource, namespace, name, obj)

    def delete(
        self, resource: Resource, namespace: str, name: str, uid: str = "", version: str = ""
    ) -> None:
        """A pod that has a node goes when its kubelet says so, everything else at once."""
        obj = self.get(resource, namespace, name)
        metadata = obj["metadata"]
        for wanted, found in ((uid, metadata["uid"]), (version, metadata["resourceVersion"])):
            if wanted and wanted != found:
                raise ConflictError("the precondition failed")
        if resource == PODS and self.kubelet:
            if "deletionTimestamp" not in metadata:
                metadata["deletionTimestamp"] = self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
                self._update(resource, namespace, name, obj)
            return
        self.vanish(resource, namespace, name)

    def vanish(self, resource: Resource, namespace: str, name: str) -> None:
        """Take an object away at once."""
        before = self._objects.get(resource, {}).pop((namespace, name), None)
        if before is not None:
            self._tell(resource, namespace, before, None)

    def set_pod_status(self, namespace: str, name: str, **status: Any) -> None:
        """What a kubelet says of a pod."""
        obj = self.get(PODS, namespace, name)
        obj["status"] |= status
        self._update(PODS, namespace, name, obj)

    def _update(self, resource: Resource, namespace: str, name: str, obj: JSON) -> JSON:
        before = self._objects[resource][(namespace, name)]
        if obj == before:
            return _copy(obj)
        if obj.get("spec") != before.get("spec"):
            obj["metadata"]["generation"] += 1
        self._store(resource, namespace, name, obj)
        return _copy(obj)

    def _store(self, resource: Resource, namespace: str, name: str, obj: JSON) -> None:
        before = self.peek(resource, namespace, name)
        # The caller's copy gets the version too: it is the answer.
        obj["metadata"]["resourceVersion"] = str(self._version + 1)
        self._objects.setdefault(resource, {})[(namespace, name)] = _copy(obj)
        self._tell(resource, namespace, before, _copy(obj))

    def _tell(
        self, resource: Resource, namespace: str, before: JSON | None, after: JSON | None
    ) -> None:
        self._version += 1
        change = Change(self._version, resource, namespace, before, after, self._actor)
        self._changes.append(change)
        for listener in self.listeners:
            listener(change)
        self._changed.set()
        if resource == EVENTS:
            return
        with contextlib.suppress(RuntimeError):
            # Before a loop runs nothing happens by itself.
            loop = asyncio.get_running_loop()
            if self._delay is None:
                self._soon(loop, 0, self.act)
            else:
                self._soon(loop, self._delay(), self._run_pods)
                self._soon(loop, self._delay(), self._collect)

    def _soon(
        self, loop: asyncio.AbstractEventLoop, delay: float, what: Callable[[], None]
    ) -> None:
        if what in self._due:
            return
        self._due.add(what)

        def act() -> None:
            self._due.discard(what)
            what()

        if delay:
            loop.call_later(delay, act)
        else:
            loop.call_soon(act)

    @contextlib.contextmanager
    def acting(self, actor: str) -> Iterator[None]:
        """Changes are this one's."""
        before, self._actor = self._actor, actor
        try:
            yield
        finally:
            self._actor = before

    # --- what happens by itself --------------------------------------------------------------

    def act(self) -> None:
        """The collector and the kubelet do what is to be done."""
        self._collect()
        self._run_pods()

    def _collect(self) -> None:
        if not self.collects:
            return
        everything = [
            (resource, key, obj)
            for resource, objects in self._objects.items()
            for key, obj in objects.items()
        ]
        present = {obj["metadata"]["uid"] for _, _, obj in everything}
        for resource, (namespace, name), obj in everything:
            owners = obj["metadata"].get("ownerReferences") or []
            orphan = owners and not any(each["uid"] in present for each in owners)
            if orphan and "deletionTimestamp" not in obj["metadata"]:
                self.delete(resource, namespace, name)

    def _run_pods(self) -> None:
        if not self.kubelet:
            return
        for (namespace, name), pod in list(self._objects.get(PODS, {}).items()):
            if "deletionTimestamp" in pod["metadata"]:
                if self.ends_pods:
                    self.vanish(PODS, namespace, name)
                continue
            mounted = [
                each["secret"]["secretName"] for each in pod["spec"]["volumes"] if "secret" in each
            ]
            there = all(self.peek(SECRETS, namespace, each) is not None for each in mounted)
            claims = [
                each["persistentVolumeClaim"]["claimName"]
                for each in pod["spec"]["volumes"]
                if "persistentVolumeClaim" in each
            ]
            there &= all(self.peek(VOLUME_CLAIMS, namespace, each) is not None for each in claims)
            new = pod["status"]["phase"] == "Pending" and not pod["status"].get("podIP")
            if there and new and self.starts_pods:
                number = next(self._addresses)
                address = f"10.244.{number // 250}.{number % 250 + 1}"
                self.set_pod_status(namespace, name, phase="Running", podIP=address)


def _merge(into: JSON, patch: Mapping[str, Any]) -> None:
    """RFC 7386."""
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, Mapping):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = _copy(value)


def _operate(obj: JSON, operation: JSON) -> None:
    """One operation of RFC 6902, on objects; as the API server has it, which also replaces what
    was not there.
    """
    path = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    parent = obj
    for part in path[:-1]:
        parent = parent.get(part) or {}
    last, verb = path[-1], operation["op"]
    if verb == "test":
        if last not in parent or parent[last] != operation["value"]:
            raise ConflictError(f"testing {operation['path']} failed")
    elif verb == "remove" and last not in parent:
        raise ConflictError(f"{operation['path']} is missing")
    elif verb == "remove":
        del parent[last]
    else:
        parent[last] = _copy(operation["value"])


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
            raise TransientError("the API server answered 500")
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
