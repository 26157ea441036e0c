"""The objects of an API server in memory, and the verbs that read and change them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import orjson

from cloister_operator.cluster.resources import ENVIRONMENTS, NAMESPACES, PODS, SESSIONS, Resource
from cloister_operator.errors import ConflictError, NotFoundError

JSON = dict[str, Any]
T = TypeVar("T")
_CUSTOM = (ENVIRONMENTS, SESSIONS)


@dataclass(frozen=True)
class Change:
    """A state that became another; None stands for absence. Neither is to be changed."""

    version: int
    resource: Resource
    namespace: str
    before: JSON | None
    after: JSON | None
    actor: str
    """Who did it: OPERATOR of support.fake_connection, or else."""


def copy(value: T) -> T:
    """What arrives at the other end of a connection; several times faster than deepcopy."""
    made: T = orjson.loads(orjson.dumps(value))
    return made


def matches(obj: JSON | None, selector: str) -> bool:
    if obj is None:
        return False
    labels = obj["metadata"].get("labels") or {}
    pairs = (part.split("=", 1) for part in selector.split(",") if part)
    return all(labels.get(key) == value for key, value in pairs)


class Storage:
    """Objects by kind, namespace and name; each change has a version of its own."""

    def __init__(self, clock: Callable[[], datetime], uids: Callable[[], str]) -> None:
        self._clock = clock
        self._uids = uids
        self._objects: dict[Resource, dict[tuple[str, str], JSON]] = {}
        self._version = 100
        self._actor = ""
        self.listeners: list[Callable[[Change], None]] = []
        """Called at each change, before anybody else hears of it."""

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
        return copy(found)

    def all(self, resource: Resource, namespace: str = "", selector: str = "") -> list[JSON]:
        """Copies of objects, by name."""
        return [
            copy(obj)
            for key, obj in sorted(self._objects.get(resource, {}).items())
            if namespace in ("", key[0]) and matches(obj, selector)
        ]

    @contextlib.contextmanager
    def acting(self, actor: str) -> Iterator[None]:
        """Changes are this one's."""
        before, self._actor = self._actor, actor
        try:
            yield
        finally:
            self._actor = before

    # --- writing -----------------------------------------------------------------------------

    def create(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        """POST; raises ConflictError, and NotFoundError for a namespace that is not there."""
        if resource.namespaced and self.peek(NAMESPACES, "", namespace) is None:
            raise NotFoundError(f"namespace {namespace} not found")
        obj = copy(body)
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
        return copy(obj)

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
        """Objects that linger go later, all others at once."""
        obj = self.get(resource, namespace, name)
        metadata = obj["metadata"]
        for wanted, found in ((uid, metadata["uid"]), (version, metadata["resourceVersion"])):
            if wanted and wanted != found:
                raise ConflictError("the precondition failed")
        if self._lingers(resource):
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
            return copy(obj)
        if obj.get("spec") != before.get("spec"):
            obj["metadata"]["generation"] += 1
        self._store(resource, namespace, name, obj)
        return copy(obj)

    def _store(self, resource: Resource, namespace: str, name: str, obj: JSON) -> None:
        before = self.peek(resource, namespace, name)
        # The caller's copy gets the version too: it is the answer.
        obj["metadata"]["resourceVersion"] = str(self._version + 1)
        # Nobody changes what is stored: one copy serves the state and all who hear of it.
        stored = copy(obj)
        self._objects.setdefault(resource, {})[(namespace, name)] = stored
        self._tell(resource, namespace, before, stored)

    def _tell(
        self, resource: Resource, namespace: str, before: JSON | None, after: JSON | None
    ) -> None:
        self._version += 1
        change = Change(self._version, resource, namespace, before, after, self._actor)
        for listener in self.listeners:
            listener(change)
        self._told(change)

    def _told(self, change: Change) -> None:
        """Everything that follows from a change by itself."""

    def _lingers(self, resource: Resource) -> bool:
        """Whether objects of this kind only get a deletionTimestamp when they are deleted."""
        return False


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
            into[key] = copy(value)


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
        parent[last] = copy(operation["value"])
