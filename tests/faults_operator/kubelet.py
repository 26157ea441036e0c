"""Gives pods a node, and runs their exec servers as processes in a network of their own.

What the operator sees is what a kubelet does: a pod is bound, starts when all that it mounts is
there, tells its address, and goes when its process has ended.
"""

import asyncio
import base64
import contextlib
import itertools
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister_devcluster import node
from cloister_operator.cluster.resources import PODS, SECRETS, VOLUME_CLAIMS, Resource
from faults_operator.control_plane import Admin
from faults_operator.history import History
from faults_operator.processes import Process, Zygote, zygote
from support.fake_api import Change

JSON = dict[str, Any]
_SERVER_FOLDERS = {"identity": "IDENTITY_DIR", "recipe": "RECIPE_DIR"}


@dataclass
class _Pod:
    """What runs for a pod."""

    folder: Path
    address: str = ""
    process: Process | None = None
    workspace: Path | None = None
    ending: bool = False
    mounted: asyncio.Event = field(default_factory=asyncio.Event)


class Notes(Mapping[str, str]):
    """What exec servers noted under a name, by their pods' UIDs."""

    def __init__(self, pods: Path, name: str) -> None:
        self._pods = pods
        self._name = name

    def __getitem__(self, uid: str) -> str:
        try:
            return (self._pods / uid / self._name).read_text()
        except FileNotFoundError:
            raise KeyError(uid) from None

    def __iter__(self) -> Iterator[str]:
        return (each.parent.name for each in self._pods.glob(f"*/{self._name}"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Kubelet:
    """Runs the pods of a namespace."""

    def __init__(
        self, admin: Admin, history: History, servers: Zygote, network: str, folder: Path
    ) -> None:
        """`network`: the first three octets of the exec servers' addresses."""
        self._admin = admin
        self._history = history
        self._servers = servers
        self._addresses = itertools.cycle([f"{network}.{each}" for each in range(128, 255)])
        self._folder = folder
        self._pods: dict[str, _Pod] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.namespace = ""
        self.failed: list[str] = []
        """What went wrong with it, which would be a mistake of the tests."""
        self.started: Counter[str] = Counter()
        """Exec servers by namespace."""
        history.listeners.append(self._look)

    @property
    def claimed(self) -> Mapping[str, str]:
        """Session UID by pod UID."""
        return Notes(self._folder, "claimed")

    @property
    def probed(self) -> Mapping[str, str]:
        """Pods that tried to reach the cluster, by UID."""
        return Notes(self._folder, "probed")

    def workspace(self, pod: JSON) -> Path:
        """Where a running pod's workspace is."""
        found = self._pods[pod["metadata"]["uid"]].workspace
        assert found
        return found

    async def settle(self) -> None:
        """Let what is under way finish."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _look(self, change: Change) -> None:
        if change.namespace != self.namespace:
            return
        if change.resource in (SECRETS, VOLUME_CLAIMS):
            for each in self._pods.values():
                each.mounted.set()
        if change.resource != PODS:
            return
        seen = change.after or change.before
        assert seen
        uid = seen["metadata"]["uid"]
        if change.after is None or "deletionTimestamp" in change.after["metadata"]:
            pod = self._pods.get(uid)
            if pod and not pod.ending:
                pod.ending = True
                pod.mounted.set()
                self._start(self._end(seen, pod))
        elif uid not in self._pods:
            self._pods[uid] = _Pod(self._folder / uid)
            self._start(self._run(seen, self._pods[uid]))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self.failed.append(repr(error))

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, raw: JSON, pod: _Pod) -> None:
        name, path = raw["metadata"]["name"], self._path(raw)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "uid": raw["metadata"]["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "node1"},
        }
        try:
            await self._admin.call("POST", f"{path}/binding", binding)
        except AssertionError:
            if not pod.ending:
                raise
        env = await self._mounts(raw, pod)
        if env is None:
            return
        pod.address = next(self._addresses)
        env |= {"CLOISTER_LISTEN": f"{pod.address}:7443"}
        pod.process = await self._servers.fork(env, pod.folder / "log")
        self.started[self.namespace] += 1
        if pod.ending:
            pod.process.kill()
            return
        running = {
            "phase": "Running",
            "podIP": pod.address,
            "podIPs": [{"ip": pod.address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        body, kind = {"status": running}, "application/merge-patch+json"
        await self._admin.call("PATCH", f"{path}/status", body, kind, missing=True)

    async def _mounts(self, raw: JSON, pod: _Pod) -> dict[str, str] | None:
        """The exec server's environment, once all volumes are there; None if it ends before."""
        uid, namespace = raw["metadata"]["uid"], raw["metadata"]["namespace"]
        env = {"PATH": os.environ["PATH"], "CLOISTER_POD_UID": uid, "FAULTS_NOTES": str(pod.folder)}
        for variable in ("state", "home", "roots"):
            (pod.folder / variable).mkdir(parents=True)
        env["CLOISTER_STATE_DIR"] = str(pod.folder / "state")
        env["CLOISTER_HOME"] = str(pod.folder / "home")
        env["CLOISTER_ROOTS"] = str(pod.folder / "roots")
        env["CLOISTER_READ_ONLY_ROOTS"] = ""
        for volume in raw["spec"]["volumes"]:
            if "secret" in volume:
                name = volume["secret"]["secretName"]
                secret = await self._wait(SECRETS, namespace, name, pod)
                if secret is None:
                    return None
                folder = pod.folder / volume["name"]
                folder.mkdir()
                for key, value in secret["data"].items():
                    (folder / key).write_bytes(base64.b64decode(value))
                if volume["name"] in _SERVER_FOLDERS:
                    env[f"CLOISTER_{_SERVER_FOLDERS[volume['name']]}"] = str(folder)
            if volume["name"] == "workspace":
                pod.workspace = pod.folder / "workspace"
                if "persistentVolumeClaim" in volume:
                    name = volume["persistentVolumeClaim"]["claimName"]
                    claim = await self._wait(VOLUME_CLAIMS, namespace, name, pod)
                    if claim is None:
                        return None
                    pod.workspace = self._folder / "volumes" / claim["metadata"]["uid"]
                pod.workspace.mkdir(parents=True, exist_ok=True)
                env["CLOISTER_WORKSPACE"] = str(pod.workspace)
        return env

    async def _wait(self, resource: Resource, namespace: str, name: str, pod: _Pod) -> JSON | None:
        while not pod.ending:
            pod.mounted.clear()
            found = self._history.peek(resource, namespace, name)
            if found:
                return found
            await pod.mounted.wait()
        return None

    async def _end(self, raw: JSON, pod: _Pod) -> None:
        if pod.process:
            pod.process.kill()
            await pod.process.ended.wait()
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": raw["metadata"]["uid"]},
        }
        await self._admin.call("DELETE", self._path(raw), body, missing=True)

    def _path(self, raw: JSON) -> str:
        return PODS.path(raw["metadata"]["namespace"], raw["metadata"]["name"])


def _connect(pid: int, link: str, network: str) -> None:
    """Join the network namespace of a process to ours by a cable of this name."""
    inside = ["nsenter", f"--target={pid}", "--net"]
    for prefix, words in (
        ([], f"ip link add {link} type veth peer name eth0 netns {pid}"),
        ([], f"ip address add {network}.1/24 dev {link}"),
        ([], f"ip link set {link} up"),
        (inside, "ip link set lo up"),
        (inside, "ip link set eth0 up"),
        (inside, f"ip address add {network}.2/24 dev eth0"),
        # Each of these is an address of the node, without being added one by one.
        (inside, f"ip route add local {network}.128/25 dev lo"),
    ):
        subprocess.run([*prefix, *words.split()], check=True)


@contextlib.asynccontextmanager
async def kubelet(admin: Admin, history: History, folder: Path) -> AsyncIterator[Kubelet]:
    """A Kubelet; its pods are reached from here and reach nothing themselves. Needs root."""
    network = node.choose_network(os.getpid(), node.routes())
    link = f"clof{os.getpid() % 10**7}"
    async with zygote("sandbox", launcher=("unshare", "--net")) as servers:
        try:
            _connect(servers.pid, link, network)
            yield Kubelet(admin, history, servers, network, folder)
        finally:
            node.unlink(link)
