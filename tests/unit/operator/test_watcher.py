"""kopf in its thread: that it ends is noticed, and it ends when told to."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cloister_operator.handlers import Watcher

JSON = dict[str, Any]


async def serve(status: int, seen: asyncio.Event) -> tuple[web.AppRunner, str]:
    """An API server that answers every call like this."""

    async def answer(_: web.Request) -> web.Response:
        seen.set()
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def kubeconfig(path: Path, server: str) -> str:
    content: JSON = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("status", [410, 415])
async def test_an_answer_that_ends_kopf_is_told(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator that goes on would hear of nothing any more."""
    ended, seen = asyncio.Event(), asyncio.Event()
    runner, server = await serve(status, seen)
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "kubeconfig", server))
    watcher = Watcher(lambda *_: None, ended.set)
    watcher.start()
    try:
        async with asyncio.timeout(30):
            await ended.wait()
    finally:
        await watcher.stop()
        await runner.cleanup()


async def test_it_ends_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, seen = asyncio.Event(), asyncio.Event()
    runner, server = await serve(503, seen)
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "kubeconfig", server))
    watcher = Watcher(lambda *_: None, ended.set)
    watcher.start()
    await seen.wait()
    await watcher.stop()
    assert not watcher._thread.is_alive()
    assert not ended.is_set()
    await runner.cleanup()
