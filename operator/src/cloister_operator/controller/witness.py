"""How far the watch of pods has come: what it has told, everybody's writes before it are known."""

import asyncio
from collections.abc import Iterable

from ..api.common import JSON
from ..api.pod import PodView
from ..cache import Store
from ..errors import TransientError

PATIENCE = 5.0
"""Seconds; the watch tells of our own write within milliseconds when it is well."""


class Witness:
    """cluster.reflector.Sink that hands on to the mirror, and remembers the newest version.

    The API server tells of changes in the order of their versions. Who has written something and
    waits until the watch tells of it knows all that was written before.
    """

    def __init__(self, pods: Store[PodView]) -> None:
        self._pods = pods
        self._versions: dict[str, int] = {}
        self._moved = asyncio.Event()

    def replace(self, objects: Iterable[JSON], version: int, namespace: str = "") -> None:
        """See Sink."""
        self._pods.replace(objects, version, namespace)
        self._move(namespace, version)

    def put(self, obj: JSON) -> None:
        """See Sink."""
        self._pods.put(obj)
        self._move(obj["metadata"]["namespace"], int(obj["metadata"]["resourceVersion"]))

    def remove(self, obj: JSON) -> None:
        """See Sink."""
        self._pods.remove(obj)
        self._move(obj["metadata"]["namespace"], int(obj["metadata"]["resourceVersion"]))

    async def reached(self, namespace: str, version: int) -> None:
        """Return once everything up to this version is in the mirror; raises TransientError when
        the watch does not get there.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                while self._versions.get(namespace, 0) < version:
                    moved = self._moved
                    await moved.wait()
        except TimeoutError:
            message = f"the watch of pods in {namespace} does not tell of what was written"
            raise TransientError(message) from None

    def _move(self, namespace: str, version: int) -> None:
        self._versions[namespace] = max(version, self._versions.get(namespace, 0))
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
