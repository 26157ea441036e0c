"""What the API server holds, as far as this process knows: mirrored, and written through.

An answer to one of our own writes goes in at once, so that no decision rests on a state older
than what this process did. A resourceVersion tells which of two states is newer; a deleted
object's UID is remembered, so that a late event does not bring it back; nor does an answer that
comes after a list in which the object was missing.
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from .api.common import JSON

log = logging.getLogger(__name__)

V = TypeVar("V")
Key = tuple[str, str]
_TOMBSTONES = 20_000


@dataclass(frozen=True)
class _Entry(Generic[V]):
    version: int
    uid: str
    value: V


class Store(Generic[V]):
    """Objects of one kind by namespace and name."""

    def __init__(
        self, parse: Callable[[JSON], V], index: Callable[[V], Iterable[Hashable]]
    ) -> None:
        """`parse` reads an object and raises ValueError for one that cannot be read; `index`
        names the groups that it belongs to.
        """
        self._parse = parse
        self._index = index
        self._entries: dict[Key, _Entry[V]] = {}
        self._groups: defaultdict[Hashable, dict[Key, V]] = defaultdict(dict)
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._listed: dict[str, int] = {}
        """By namespace (empty: all), the version of the newest list."""
        self._listeners: list[Callable[[V | None, V | None], None]] = []

    def listen(self, listener: Callable[[V | None, V | None], None]) -> None:
        """Call back with (before, after) at each change; None stands for absence."""
        self._listeners.append(listener)

    def get(self, namespace: str, name: str) -> V | None:
        """An object, or None."""
        entry = self._entries.get((namespace, name))
        return entry.value if entry else None

    def group(self, which: Hashable) -> list[V]:
        """The objects of a group."""
        return list(self._groups.get(which, {}).values())

    def all(self) -> list[V]:
        """Every object."""
        return [entry.value for entry in self._entries.values()]

    def __iter__(self) -> Iterator[Key]:
        """Namespace and name of every object."""
        return iter(self._entries)

    def put(self, obj: JSON) -> None:
        """An object as the API server answered or a watch told; what is older is ignored."""
        metadata = obj["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        version, uid = int(metadata["resourceVersion"]), metadata["uid"]
        old = self._entries.get(key)
        if uid in self._gone or (old and old.version >= version):
            return
        listed = max(self._listed.get(each, 0) for each in ("", key[0]))
        if version <= listed and (old is None or old.uid != uid):
            # A newer list did not have it: the object is gone, and no watch will tell of that.
            return
        entry = _Entry(version, uid, self._parse(obj))
        if old and old.uid != uid:
            self._bury(old.uid)
        self._entries[key] = entry
        self._regroup(key, old.value if old else None, entry.value)
        self._tell(old.value if old else None, entry.value)

    def remove(self, obj: JSON) -> None:
        """An object was deleted."""
        metadata = obj["metadata"]
        self._drop((metadata.get("namespace", ""), metadata["name"]), metadata["uid"])

    def replace(self, objects: Iterable[JSON], version: int, namespace: str = "") -> None:
        """All objects of the namespace (of all, if empty) at a resourceVersion.

        What is not among them and not newer than the list is gone.
        """
        listed = set()
        for obj in objects:
            listed.add(obj["metadata"]["uid"])
            try:
                self.put(obj)
            except ValueError as error:
                # One object that cannot be read must not hide all the others.
                log.error("%s cannot be read: %s", obj["metadata"]["name"], error)  # noqa: TRY400
        for key, entry in list(self._entries.items()):
            mine = not namespace or key[0] == namespace
            if mine and entry.uid not in listed and entry.version <= version:
                self._drop(key, entry.uid)
        self._listed[namespace] = max(version, self._listed.get(namespace, 0))

    def _bury(self, uid: str) -> None:
        self._gone[uid] = None
        if len(self._gone) > _TOMBSTONES:
            self._gone.popitem(last=False)

    def _drop(self, key: Key, uid: str) -> None:
        self._bury(uid)
        entry = self._entries.get(key)
        if entry is None or entry.uid != uid:
            return
        del self._entries[key]
        self._regroup(key, entry.value, None)
        self._tell(entry.value, None)

    def _regroup(self, key: Key, old: V | None, new: V | None) -> None:
        for which in self._index(old) if old is not None else ():
            members = self._groups[which]
            members.pop(key, None)
            if not members:
                del self._groups[which]
        for which in self._index(new) if new is not None else ():
            self._groups[which][key] = new  # type: ignore[assignment]

    def _tell(self, old: V | None, new: V | None) -> None:
        for listener in self._listeners:
            listener(old, new)
