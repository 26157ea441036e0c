"""The reference toolset of the public `anthropic` package, run in this process, without a network.

What a worker gets that runs the tools itself: no isolation, no encryption, no second process.
"""

import asyncio
import logging
import statistics
import time
from pathlib import Path
from typing import Any

from anthropic.lib.tools.agent_toolset import (
    AgentToolContext,
    BashSession,
    beta_agent_toolset_20260401,
)
from bench.burst import COUNT
from bench.calls import SMALL_CONTENT, SMALL_FILE
from bench.results import percentile


async def _burst(workspace: Path) -> float:
    """Milliseconds of a hundred shells that each run one command."""

    async def one() -> None:
        session = await BashSession.start(workspace)
        if (await session.exec(":")).exit_code != 0:
            raise RuntimeError("the command failed")
        await session.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(COUNT)))
    return (time.perf_counter() - began) * 1000


async def _measure(workspace: Path, calls: int, rounds: int) -> dict[str, float]:
    (workspace / SMALL_FILE).write_bytes(SMALL_CONTENT)
    tools: dict[str, Any] = {
        tool.name: tool for tool in beta_agent_toolset_20260401(AgentToolContext(workdir=workspace))
    }
    figures = {}
    inputs = {"bash": {"command": ":"}, "read": {"file_path": SMALL_FILE}}
    for tool, name in (("bash", "bash"), ("read", "read4k")):
        took = []
        for number in range(-calls // 10, calls):
            began = time.perf_counter()
            await tools[tool].call(inputs[tool])
            if number >= 0:
                took.append((time.perf_counter() - began) * 1000)
        figures[f"reference_{name}_p50_ms"] = round(percentile(took, 0.5), 3)
        figures[f"reference_{name}_p99_ms"] = round(percentile(took, 0.99), 3)
    bursts = [await _burst(workspace) for _ in range(rounds)]
    figures["reference_burst100_ms"] = round(statistics.median(bursts), 1)
    for tool in tools.values():
        closing = tool.close() if tool.close is not None else None
        if closing is not None:
            await closing
    return figures


def reference(workspace: Path, calls: int, rounds: int) -> dict[str, float]:
    """The figures of the reference toolset in a workspace of its own."""
    workspace.mkdir()
    # Its shells are sometimes reaped before asyncio looks for them, which asyncio warns of.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    return asyncio.run(_measure(workspace, calls, rounds))
