"""What happens in a cluster by itself: the garbage collector's work and a kubelet's."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from datetime import datetime

from cloister_operator.cluster.resources import EVENTS, PODS, SECRETS, VOLUME_CLAIMS, Resource
from support.fake_storage import Change, Storage


class Nature(Storage):
    """A Storage in which orphans go, and pods start and end."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        uids: Callable[[], str],
        kubelet: bool,
        delay: Callable[[], float] | None,
    ) -> None:
        """`kubelet`: start pods whose Secrets are there, and end those that are deleted; `delay`:
        seconds until the collector or the kubelet takes notice of a change (None: at once).
        """
        super().__init__(clock, uids)
        self._addresses = itertools.count(1)
        self._delay = delay
        self._due: set[Callable[[], None]] = set()
        self.kubelet = kubelet
        self.collects = True
        """Whether objects go when their owner is gone."""
        self.ends_pods = True
        """Whether the kubelet ends pods that are deleted; otherwise they stay on their way."""
        self.starts_pods = True
        """Whether the kubelet starts pods."""

    def _lingers(self, resource: Resource) -> bool:
        # A pod that has a node goes when its kubelet says so.
        return resource == PODS and self.kubelet

    def _told(self, change: Change) -> None:
        if change.resource == EVENTS:
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
