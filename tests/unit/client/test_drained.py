"""A connection that is lost while the sandbox ends: what runs there is still told."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloister
from cloister_api.exec.v1 import exec_pb2
from support.eventually import until
from support.fault_proxy import Fault, FaultProxy, Kind, Way
from support.sandbox_server import SESSION_NAME, Sandbox, sandbox


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sandbox]:
    """A claimed exec server of its own, for a test that ends it."""
    with sandbox(tmp_path / "sandbox") as running:
        running.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        running.claim()
        yield running


async def test_a_call_and_a_program_survive_a_loss_while_the_sandbox_is_drained(
    session: cloister.AsyncSession, proxy: FaultProxy, server: Sandbox
) -> None:
    begun, end = server.workspace / "begun", server.workspace / "end"
    os.mkfifo(begun)
    os.mkfifo(end)
    process = await session.start(["bash", "-c", "echo up; read -r line; echo $line"], stdin=True)
    call = asyncio.create_task(session.bash("echo > begun; cat end"))
    await asyncio.to_thread(begun.read_bytes)
    with server.operator(SESSION_NAME) as channel:
        draining = await asyncio.to_thread(server.begin_drain, channel)
        proxy.arm([Fault(Kind.RESET, Way.DOWN, after_seconds=0.01)])
        await until(lambda: proxy.happened[Kind.RESET] == 1)
        await asyncio.to_thread(end.write_text, "finished")
        result = await call
        assert (result.text, result.exit_code, result.replayed) == ("finished", 0, True)
        await process.write(b"late\n")
        assert (await process.result()).code == 0
        await asyncio.to_thread(draining.result)
