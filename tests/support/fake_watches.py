"""Watches of an API server in memory: what changed, from a version that is still kept."""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable

from cloister_operator.cluster.api import ExpiredError
from cloister_operator.cluster.resources import Resource
from support.fake_storage import JSON, Change, copy, matches


class _Watcher:
    """One watch, and what it has still to tell."""

    def __init__(self, resource: Resource, namespace: str, selector: str) -> None:
        self._resource = resource
        self._namespace = namespace
        self._selector = selector
        self.pending: deque[tuple[str, Change]] = deque()
        self.woken = asyncio.Event()

    def see(self, change: Change) -> None:
        """Take a change if it is one that the watch tells."""
        mine = self._namespace in ("", change.namespace)
        if change.resource is not self._resource or not mine:
            return
        was = matches(change.before, self._selector)
        if matches(change.after, self._selector):
            self.pending.append(("MODIFIED" if was else "ADDED", change))
        elif was:
            self.pending.append(("DELETED", change))
        else:
            return
        self.woken.set()


class Watches:
    """The changes that are kept, and everybody who waits for the next one."""

    def __init__(self, history: int) -> None:
        """`history`: changes that a new watch can go back."""
        self._changes: deque[Change] = deque(maxlen=history)
        self._forgotten = 0
        self._watchers: list[_Watcher] = []

    def tell(self, change: Change) -> None:
        """Something changed."""
        self._changes.append(change)
        for each in self._watchers:
            each.see(change)

    def wake(self) -> None:
        """Let all watches look whether they end."""
        for each in self._watchers:
            each.woken.set()

    def forget(self, version: int) -> None:
        """No watch can start at a version before this one; nor go on from one."""
        self._forgotten = version
        self._changes.clear()

    async def watch(
        self,
        resource: Resource,
        namespace: str,
        selector: str,
        after: int,
        ends: Callable[[], bool],
    ) -> AsyncIterator[tuple[str, JSON]]:
        """Changes after a version, until `ends` says so at a change or at `wake`; raises
        ExpiredError when they are not kept.
        """
        self._check(after + 1)
        watcher = _Watcher(resource, namespace, selector)
        newer = itertools.takewhile(lambda each: each.version > after, reversed(self._changes))
        for change in reversed(list(newer)):
            watcher.see(change)
        self._watchers.append(watcher)
        try:
            while not ends():
                if watcher.pending:
                    kind, change = watcher.pending.popleft()
                    # Who takes too long falls out of what is kept.
                    self._check(change.version)
                    yield kind, _told(kind, change)
                else:
                    watcher.woken.clear()
                    await watcher.woken.wait()
        finally:
            self._watchers.remove(watcher)

    def _check(self, version: int) -> None:
        """Raise ExpiredError when the change that made this version may not be kept."""
        full = len(self._changes) == self._changes.maxlen
        if version <= self._forgotten or (full and self._changes[0].version > version):
            raise ExpiredError("the watch is too old")


def _told(kind: str, change: Change) -> JSON:
    found = change.before if kind == "DELETED" else change.after
    assert found is not None
    obj = copy(found)
    # A deletion is told with the state before it, and a version of its own.
    obj["metadata"]["resourceVersion"] = str(change.version)
    return obj
