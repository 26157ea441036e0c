"""An API server in memory with the parts of a cluster that act by themselves."""

import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cloister_operator.cluster.resources import NAMESPACES, Resource
from support.fake_nature import Nature
from support.fake_storage import JSON, Change
from support.fake_watches import Watches


@dataclass(frozen=True)
class Write:
    """A write that reached the server."""

    verb: str
    plural: str
    name: str


class FakeCluster(Nature):
    """The server's state, its watches, and what happens in a cluster by itself."""

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
        `kubelet` and `delay`: see Nature.
        """
        super().__init__(clock, uids, kubelet, delay)
        self._watches = Watches(history)
        self.writes: list[Write] = []
        """Writes in their order; Events, which nobody decides on, left out."""
        self.late: list[Write] = []
        """Those that came when the operator that had sent them was dead."""
        for name, labels in (namespaces or {}).items():
            body = {"metadata": {"name": name, "labels": dict(labels)}}
            self.create(NAMESPACES, "", body)
        self.writes.clear()

    def _told(self, change: Change) -> None:
        self._watches.tell(change)
        super()._told(change)

    def watch(
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
        return self._watches.watch(resource, namespace, selector, after, ends)

    def wake(self) -> None:
        """Let all watches look whether they end."""
        self._watches.wake()

    def forget_history(self) -> None:
        """Compact: no watch can start at a version before this one."""
        self._watches.forget(self.version)
