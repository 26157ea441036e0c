"""A real etcd, API server and garbage collector as processes of this machine: no node, no root.

Objects are kept as JSON, so that `history.History` can read every write from etcd itself, in the
order in which it happened.
"""

import asyncio
import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cloister_devcluster import build, pki
from cloister_devcluster.components import Config
from cloister_devcluster.places import Places
from cloister_operator import names
from cloister_operator.cluster.resources import CONFIG_MAPS, SESSIONS
from support import chart
from support.sandbox_server import free_port

JSON = dict[str, Any]
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "helm")
CONTROLLERS = "garbage-collector-controller,persistentvolumeclaim-protection-controller"
WORKER_TOKEN = "worker-token"
OPERATOR_TOKEN = "operator-token"
_TOKENS = f"""\
{OPERATOR_TOKEN},operator,operator,system:masters
{WORKER_TOKEN},worker,worker,system:masters
"""


@dataclass(frozen=True)
class _Local(Config):
    """A cluster on loopback."""

    port: int = 0

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def node_ip(self) -> str:
        return "127.0.0.1"


class Admin:
    """Calls to the API server that no fault reaches."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        missing: bool = False,
    ) -> JSON:
        """The answer; AssertionError for any other than 2xx, and 404 unless it may be `missing`."""
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        url = self._server + path
        async with self._session.request(method, url, data=data, headers=headers) as response:
            said = await response.text()
            good = response.status < 300 or (missing and response.status == 404)
            # Of a kind that is not served yet the answer is no JSON.
            assert good, f"{method} {path}: {response.status} {said[:500]}"
            found: JSON = json.loads(said)
            return found


@dataclass(frozen=True)
class ControlPlane:
    """What runs, and how to reach it."""

    folder: Path
    server: str
    etcd: str
    admin: Admin
    tls: ssl.SSLContext
    """An administrator's."""

    def server_tls(self) -> ssl.SSLContext:
        """For a server that shows the API server's own certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(
            self.folder / "pki/apiserver.crt", self.folder / "pki/apiserver.key"
        )
        return context

    def kubeconfig(self, server: str, token: str) -> Path:
        """Write a kubeconfig for an API server at this URL."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "faults",
                    "cluster": {
                        "server": server,
                        "certificate-authority": str(self.folder / "pki" / "ca.crt"),
                    },
                }
            ],
            "users": [{"name": "operator", "user": {"token": token}}],
            "contexts": [{"name": "faults", "context": {"cluster": "faults", "user": "operator"}}],
            "current-context": "faults",
        }
        path = self.folder / "operator.kubeconfig"
        path.write_text(json.dumps(content))
        return path


class _Programs:
    """What was started, to be ended in the opposite order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, arguments: list[str]) -> None:
        """Start a program, whose output goes to its log."""
        with (self._folder / f"{name}.log").open("wb") as log:
            command = [str(build.find(name).path), *arguments]
            self._running.append(subprocess.Popen(command, stdout=log, stderr=log))

    def end(self) -> None:
        """Kill all."""
        for each in reversed(self._running):
            each.kill()
            each.wait()


@contextlib.asynccontextmanager
async def control_plane(folder: Path) -> AsyncIterator[ControlPlane]:
    """Start it below `folder`; everything is gone afterwards."""
    build.ensure(PROGRAMS)
    (folder / "pki").mkdir(parents=True)
    etcd, peers, port = free_port(), free_port(), free_port()
    config = _Local(Places("faults", folder), "127.0.0", port)
    await asyncio.to_thread(pki.make, config)
    (folder / "tokens").write_text(_TOKENS)
    (folder / "kcm.kubeconfig").write_text(pki.kubeconfig(config))
    keys = folder / "pki"
    commands = {
        "etcd": [
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-cluster=default=http://127.0.0.1:{peers}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        "kube-apiserver": [
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--storage-media-type=application/json",
            "--bind-address=127.0.0.1",
            # Nobody dials it; it is only not allowed to be a loopback address.
            "--advertise-address=192.0.2.1",
            f"--secure-port={port}",
            f"--cert-dir={folder}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}/sa.pub",
            f"--service-account-signing-key-file={keys}/sa.key",
            f"--client-ca-file={keys}/ca.crt",
            f"--tls-cert-file={keys}/apiserver.crt",
            f"--tls-private-key-file={keys}/apiserver.key",
            f"--token-auth-file={folder}/tokens",
            "--authorization-mode=RBAC",
            # As clusters have it: what refuses a privileged pod is to be a policy.
            "--allow-privileged=true",
            # Nobody makes the service accounts that it asks for.
            "--disable-admission-plugins=ServiceAccount",
            "--profiling=false",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={folder}/kcm.kubeconfig",
            f"--cert-dir={folder}",
            f"--controllers={CONTROLLERS}",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            "--leader-elect=false",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ],
    }
    tls = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    tls.load_cert_chain(keys / "admin.crt", keys / "admin.key")
    connector = aiohttp.TCPConnector(ssl=tls, limit=0)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
        programs = _Programs(folder)
        try:
            programs.start("etcd", commands["etcd"])
            programs.start("kube-apiserver", commands["kube-apiserver"])
            admin = Admin(session, config.server)
            await _answers(session, f"{config.server}/readyz")
            await _define(admin)
            # It would learn of kinds that come later only after half a minute.
            programs.start("kube-controller-manager", commands["kube-controller-manager"])
            await _collects(admin)
            yield ControlPlane(folder, config.server, f"http://127.0.0.1:{etcd}", admin, tls)
        finally:
            programs.end()


async def _answers(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


async def _define(admin: Admin) -> None:
    """Make our kinds known, and wait until they are served."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    kinds = chart.render().of("CustomResourceDefinition")
    for kind in kinds:
        await admin.call("POST", path, kind)
    async with asyncio.timeout(60):
        for kind in kinds:
            names, group = kind["spec"]["names"], kind["spec"]["group"]
            version = kind["spec"]["versions"][0]["name"]
            served = f"/apis/{group}/{version}/{names['plural']}"
            while True:
                # Before it is served it is not found, or its storage is being set up.
                with contextlib.suppress(AssertionError):
                    await admin.call("GET", served)
                    break
                await asyncio.sleep(0.1)


async def _collects(admin: Admin) -> None:
    """Wait until what is owned by an object of ours goes with it."""
    sessions, config_maps = SESSIONS.path("default"), CONFIG_MAPS.path("default")
    session: JSON = {
        "apiVersion": names.API_VERSION,
        "kind": names.SESSION_KIND,
        "metadata": {"name": "owner"},
        "spec": {"environmentName": "none"},
    }
    made = await admin.call("POST", sessions, session)
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.SESSION_KIND,
        "name": "owner",
        "uid": made["metadata"]["uid"],
    }
    owned = {"metadata": {"name": "owned", "ownerReferences": [owner]}}
    await admin.call("POST", config_maps, owned)
    await admin.call("DELETE", f"{sessions}/owner")
    async with asyncio.timeout(60):
        while True:
            found = await admin.call("GET", f"{config_maps}/owned", missing=True)
            if found["kind"] == "Status":
                return
            await asyncio.sleep(0.05)
