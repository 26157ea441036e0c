"""The real operator, a real API server, and everything between them in the test's hands."""

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc

from cloister_api.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from cloister_operator import names
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICES,
    SESSIONS,
    VOLUME_CLAIMS,
    Resource,
)
from faults_operator.control_plane import (
    OPERATOR_TOKEN,
    WORKER_TOKEN,
    ControlPlane,
    control_plane,
)
from faults_operator.history import History, history
from faults_operator.kubelet import Kubelet, kubelet
from faults_operator.processes import Process, Zygote, zygote
from faults_operator.proxy import ApiProxy, Call, Dropped
from support import invariants
from support.fake_api import OPERATOR, Change, FakeCluster
from support.fake_operator import OPEN_NAMESPACE
from support.sandbox_server import free_port

JSON = dict[str, Any]
MERGE = "application/merge-patch+json"
MOST_CRASHES = 20
"""Of an operator that nobody kills; there is no use in starting it again."""
MOST_CALLS = 200
"""Of one request: at 0.3 s each, several times as long as a Lease takes to run out."""


@dataclass
class Rig:
    """What all runs share."""

    folder: Path
    plane: ControlPlane
    history: History
    kubelet: Kubelet
    proxy: ApiProxy
    operators: Zygote
    sessions_port: int
    kubeconfig: Path
    runs: int = 0


@contextlib.asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """Everything but an operator; needs root."""
    http, sessions = free_port(), free_port()
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        plane = await enter(control_plane(folder / "plane"))
        seen = await enter(history(plane.etcd))
        proxy = ApiProxy(plane.server, plane.tls)
        await enter(proxy.serve(plane.server_tls()))
        node = await enter(kubelet(plane.admin, seen, folder / "pods"))
        kubeconfig = plane.kubeconfig(f"https://127.0.0.1:{proxy.port}", OPERATOR_TOKEN)
        ports = (str(http), str(sessions))
        operators = await enter(zygote("operator", *ports, KUBECONFIG=str(kubeconfig)))
        yield Rig(folder, plane, seen, node, proxy, operators, sessions, kubeconfig)


class Run:
    """One operator, restarted whenever it ends, and one namespace for its sandboxes."""

    def __init__(self, rig: Rig) -> None:
        rig.runs += 1
        self.rig = rig
        self.namespace, self.system = f"s{rig.runs}", f"o{rig.runs}"
        self.deaths = 0
        self.writes = 0
        """Writes that the operator asked for."""
        self.struck: Call | None = None
        """The write at which it was killed."""
        self._closing = False
        self._operator: Process | None = None
        self._kills = False
        self.crashes = 0
        """How often it ended without having been killed."""
        self.replaced = True
        """Whether another operator starts in place of one that ended."""
        self._view = _View(rig.history)
        node = rig.kubelet
        self.invariants = invariants.Invariants(
            cast("FakeCluster", self._view), node.claimed, cast("Mapping[str, int]", node.probed)
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Set up the namespaces and keep an operator running."""
        rig, admin = self.rig, self.rig.plane.admin
        rig.kubelet.namespace = self.namespace
        rig.history.actor = self._actor
        rig.proxy.forgiven.clear()
        listen = self._look
        rig.history.listeners.append(listen)
        labels = {self.namespace: OPEN_NAMESPACE, self.system: {}}
        for name, given in labels.items():
            body = {"metadata": {"name": name, "labels": given}}
            await admin.call("POST", NAMESPACES.path(), body)
        service = {"metadata": {"name": "cloister"}, "spec": {"ports": [{"port": 8443}]}}
        await admin.call("POST", SERVICES.path(self.system), service)
        task = asyncio.create_task(self._supervise())
        try:
            yield
        finally:
            self._closing = True
            rig.proxy.forgiven.set()
            if self._operator:
                self._operator.kill()
            await task
            rig.proxy.choose = lambda _: None
            rig.proxy.before = rig.proxy.after = lambda _: None
            await rig.kubelet.settle()
            rig.history.listeners.remove(listen)

    @contextlib.asynccontextmanager
    async def standby(self) -> AsyncIterator[tuple[Process, int]]:
        """A second operator, and the port of its Sessions API."""
        http, port = free_port(), free_port()
        kubeconfig = str(self.rig.kubeconfig)
        async with zygote("operator", str(http), str(port), KUBECONFIG=kubeconfig) as operators:
            process = await operators.fork(self._env("operator-1"), self.log)
            try:
                yield process, port
            finally:
                process.kill()
                await process.ended.wait()

    def _env(self, name: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.rig.folder),
            "KUBECONFIG": str(self.rig.kubeconfig),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.rig.proxy.port),
            "CLOISTER_NAMESPACE": self.system,
            "CLOISTER_POD_IP": "127.0.0.1",
            # A container that starts again in its pod keeps the name, and so the Lease.
            "CLOISTER_POD_NAME": name,
            "CLOISTER_SANDBOX_NAMESPACES": self.namespace,
            "CLOISTER_SANDBOX_IMAGE": "registry.example/sandbox:1",
            # Its pods are processes of this machine, and no policy is between them.
            "CLOISTER_SANDBOX_USER_NAMESPACES": "false",
            "CLOISTER_PROOF_SKIP": "sandbox",
        }

    async def _supervise(self) -> None:
        env = self._env("operator-0")
        while not self._closing and self.crashes < MOST_CRASHES:
            self._kills = False
            self._operator = await self.rig.operators.fork(env, self.log)
            if self._closing:
                # Who closes knew only of the one before.
                self._operator.kill()
            await self._operator.ended.wait()
            self.deaths += 1
            self.invariants.refills += 1
            if not self._kills and not self._closing:
                self.crashes += 1
            if not self.replaced:
                return

    @property
    def log(self) -> Path:
        """What the operators of this run said."""
        return self.rig.folder / f"operator-{self.rig.runs}.log"

    def kill(self) -> None:
        """Kill the operator; the next one starts when it is gone."""
        if self._operator:
            self._kills = True
            self._operator.kill()

    def count(self) -> None:
        """Count writes, and do nothing about them."""
        self.rig.proxy.before = self._count

    def kill_at(self, number: int, *, answered: bool) -> None:
        """Kill the operator at its write of this number: before the API server hears of it, or when
        it has `answered`, before the operator hears of it.
        """

        def before(call: Call) -> None:
            self._count(call)
            if call.writes and self.writes == number and self.struck is None:
                self.struck = call
                if not answered:
                    self.kill()
                    raise Dropped

        def after(call: Call) -> None:
            if answered and self.struck is call:
                self.kill()
                raise Dropped

        self.rig.proxy.before, self.rig.proxy.after = before, after

    def _count(self, call: Call) -> None:
        if call.writes:
            self.writes += 1

    def _actor(self, resource: Resource, namespace: str, name: str) -> str:
        return OPERATOR if self.rig.proxy.deletes(resource, namespace, name) else ""

    def _look(self, change: Change) -> None:
        if change.namespace == self.namespace:
            for each in self._view.listeners:
                each(change)

    # --- what a person does ------------------------------------------------------------------

    async def create(self, resource: Resource, kind: str, name: str, spec: JSON) -> None:
        """Make a custom resource."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        }
        await self.rig.plane.admin.call("POST", resource.path(self.namespace), body)

    async def patch(self, resource: Resource, name: str, spec: JSON) -> None:
        """Change a custom resource's spec."""
        path = resource.path(self.namespace, name)
        await self.rig.plane.admin.call("PATCH", path, {"spec": spec}, MERGE)

    async def delete(self, resource: Resource, name: str) -> None:
        """Delete something."""
        await self.rig.plane.admin.call("DELETE", resource.path(self.namespace, name))

    async def claim(
        self, request: sessions_pb2.CreateSessionRequest, port: int = 0
    ) -> sessions_pb2.Session:
        """Create a session through the Sessions API, again and again with the same request id until
        it is answered; `port`: of another operator's than the first one's.
        """
        found = await self.until(
            "the CA", lambda: self.rig.history.peek(SECRETS, self.system, names.CA_SECRET)
        )
        ca = base64.b64decode(found["data"]["tls.crt"])
        options = [
            ("grpc.ssl_target_name_override", names.SESSIONS_SERVER_NAME),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.enable_http_proxy", 0),
        ]
        credentials = grpc.ssl_channel_credentials(ca)
        address = f"127.0.0.1:{port or self.rig.sessions_port}"
        said: list[str] = []
        async with grpc.aio.secure_channel(address, credentials, options) as channel:
            stub = sessions_pb2_grpc.SessionsStub(channel)
            for _ in range(MOST_CALLS):
                try:
                    answer = await stub.Create(
                        request,
                        metadata=[("authorization", f"Bearer {WORKER_TOKEN}")],
                        timeout=30,
                        wait_for_ready=True,
                    )
                except grpc.aio.AioRpcError as error:
                    said.append(f"{error.code().name}: {error.details()}")
                    await self._after_refusal(error)
                    continue
                return answer.session
        raise AssertionError(f"a session was refused again and again: {said[-3:]}")

    async def _after_refusal(self, error: grpc.aio.AioRpcError) -> None:
        """Come again as a client does: later."""
        assert error.code() not in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.ALREADY_EXISTS,
        ), error.details()
        await asyncio.sleep(0.3)

    # --- what there is -----------------------------------------------------------------------

    async def until(self, what: str, look: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait for a write after which `look` finds something."""
        return await self.rig.history.until(f"{what} (in {self.namespace})", look, seconds)

    def session(self, name: str) -> JSON:
        """A session; empty when there is none."""
        return self.rig.history.peek(SESSIONS, self.namespace, name) or {}

    def pods(self, **labels: str) -> list[JSON]:
        """Pods with these values of our own labels."""
        return [
            each
            for each in self.rig.history.peek_all(PODS, self.namespace)
            if all(
                each["metadata"]["labels"].get(f"{names.GROUP}/{key}") == value
                for key, value in labels.items()
            )
        ]

    def served(self, name: str) -> JSON | None:
        """The one pod of a session that runs in it."""
        session = self.session(name)
        status = session.get("status") or {}
        if status.get("phase") != "Running":
            return None
        pods = self.pods(session=session["metadata"]["uid"])
        if [each["metadata"]["uid"] for each in pods] != [status["podUID"]]:
            return None
        return pods[0]

    def pool_is(self, size: int, claimed: int, name: str = "py") -> bool:
        """Whether the pool is full, and its status says so."""
        environment = self.rig.history.peek(ENVIRONMENTS, self.namespace, name) or {}
        counts = (environment.get("status") or {}).get("pool") or {}
        free = [each for each in self.pods() if not _claimed(each)]
        return (
            len(free) == size
            and all(each["metadata"]["labels"][names.STATE_LABEL] == "warm" for each in free)
            and (counts.get("ready"), counts.get("claimed")) == (size, claimed)
        )

    def left(self) -> list[str]:
        """What there is in the namespace of what the operator makes."""
        kinds = (PODS, SECRETS, VOLUME_CLAIMS, SESSIONS, ENVIRONMENTS)
        return [
            f"{kind.plural}/{each['metadata']['name']}"
            for kind in kinds
            for each in self.rig.history.peek_all(kind, self.namespace)
        ]

    def problems(self) -> list[str]:
        """What is wrong with the present state, and what ever was."""
        seen = cast("FakeCluster", self.rig.history)
        claimed = self.rig.kubelet.claimed
        return [
            *self.invariants.violations,
            *invariants.problems(seen, claimed, self.namespace),
            *self.rig.history.wrong,
            *self.rig.kubelet.failed,
            *(["the operator ended by itself"] * self.crashes),
        ]


def _claimed(pod: JSON) -> bool:
    return bool(pod["metadata"]["labels"][names.STATE_LABEL] == names.STATE_CLAIMED)


@dataclass
class _View:
    """A History with listeners of one run."""

    of: History
    listeners: list[Callable[[Change], None]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)
