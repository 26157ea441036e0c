"""A claimed exec server per module, and a worker's tools on it."""

from collections.abc import Iterator

import pytest

from cloister_api.exec.v1 import exec_pb2
from support.sandbox_server import Sandbox, Tools, sandbox


@pytest.fixture(scope="module")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """An exec server that a session owns."""
    with sandbox(tmp_path_factory.mktemp("sandbox")) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        yield server


@pytest.fixture
def tools(claimed: Sandbox) -> Iterator[Tools]:
    """Tools of the session's worker."""
    with claimed.worker() as channel:
        yield Tools(channel)
