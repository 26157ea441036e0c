"""A cluster made of a fake API server, a fake Sessions API and a real exec server."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import cloister
from cloister_api.exec.v1 import exec_pb2
from support.fake_kube import OPERATOR_POD, FakeKube, fake_kube
from support.fake_sessions import FakeSessions, fake_sessions
from support.fault_proxy import FaultProxy, fault_proxy
from support.sandbox_server import Sandbox, sandbox


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """An exec server that a session owns."""
    with sandbox(tmp_path_factory.mktemp("sandbox")) as running:
        running.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        running.claim()
        yield running


@pytest.fixture
def sessions(server: Sandbox) -> Iterator[FakeSessions]:
    """The Sessions API."""
    with fake_sessions(server) as running:
        yield running


@pytest.fixture
def kube(sessions: FakeSessions, server: Sandbox) -> Iterator[FakeKube]:
    """The Kubernetes API, with Cloister installed."""
    with fake_kube() as running:
        running.client_config = sessions.client_config
        running.forwards = {OPERATOR_POD: sessions.port, "sandbox-0": server.port}
        yield running


@pytest.fixture
def kubeconfig(kube: FakeKube, tmp_path: Path) -> str:
    """A kubeconfig without a token, as with client certificates."""
    return kube.kubeconfig(tmp_path)


@pytest.fixture
def client(kubeconfig: str) -> Iterator[cloister.Client]:
    """A client that reaches everything directly, as inside the cluster."""
    with cloister.Client(kubeconfig=kubeconfig, direct=True) as made:
        yield made


@pytest.fixture
def outside(kubeconfig: str) -> Iterator[cloister.Client]:
    """A client that forwards ports, as outside the cluster."""
    with cloister.Client(kubeconfig=kubeconfig) as made:
        yield made


@pytest.fixture
async def proxy(server: Sandbox, sessions: FakeSessions) -> AsyncIterator[FaultProxy]:
    """Stands between the client and the exec server."""
    async with fault_proxy(server.port) as made:
        sessions.endpoint = f"127.0.0.1:{made.port}"
        yield made


@pytest.fixture
async def session(proxy: FaultProxy, kubeconfig: str) -> AsyncIterator[cloister.AsyncSession]:
    """A session whose connections can be broken; what is left running in it is ended."""
    async with (
        cloister.AsyncClient(kubeconfig=kubeconfig, direct=True) as client,
        await client.create_session("env") as made,
    ):
        yield made
        proxy.arm(())
        for each in await made.processes():
            process = await made.attach(each.id)
            if each.running:
                await process.stop()
            await process.release()
