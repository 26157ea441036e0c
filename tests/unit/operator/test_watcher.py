"""kopf in its thread: that it ends is noticed, and it ends when told to."""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cloister_operator.handlers import Watcher

JSON = dict[str, Any]


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refusal(status: int) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
    return web.json_response(body, status=status)


def refusing(status: int, seen: asyncio.Event) -> Answer:
    """An API server that answers every call like this."""

    async def answer(_: web.Request) -> web.StreamResponse:
        seen.set()
        return refusal(status)

    return answer


def kinds(*plurals: str) -> JSON:
    verbs = ["list", "watch", "patch"]
    return {
        "resources": [
            {"name": each, "singularName": each[:-1], "kind": each[:-1].title(), "verbs": verbs}
            | {"namespaced": each != "namespaces"}
            for each in plurals
        ]
    }


def group(name: str, version: str) -> JSON:
    served = {"version": version}
    return {"name": name, "preferredVersion": served, "versions": [served]}


SERVED: dict[str, JSON] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": kinds("namespaces", "events"),
    "/apis": {"groups": [group("cloister.dev", "v1alpha1"), group("apiextensions.k8s.io", "v1")]},
    "/apis/apiextensions.k8s.io/v1": kinds("customresourcedefinitions"),
    "/apis/cloister.dev/v1alpha1": kinds("environments", "sessions"),
}
"""What kopf wants to know of the API before it watches anything."""


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """kopf does not look at all of its failed tasks; asyncio says so when they are collected. That
    is here, where it is taken for the test's output, and not when pytest writes its own.
    """
    yield
    caplog.get_records("call").clear()  # they have the exceptions, and these the tasks
    gc.collect()


class Forgetful:
    """An API server that no longer knows what the first watches want to go on from."""

    def __init__(self) -> None:
        self.refusals = 2
        """One for each kind."""
        self.lists = 0
        self.listed = 0
        """How often it had listed before the last refusal."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in SERVED:
            return web.json_response(SERVED[request.path])
        if "watch" not in request.query:
            self.lists += 1
            version = str(self.lists)
            meta = {"name": "one", "namespace": "ns", "uid": "u", "resourceVersion": version}
            return web.json_response(
                {"metadata": {"resourceVersion": version}, "items": [{"metadata": meta}]}
            )
        if self.refusals:
            self.refusals -= 1
            self.listed = self.lists
            return refusal(410)
        made = web.StreamResponse()
        await made.prepare(request)
        await asyncio.Event().wait()
        return made


async def serve(answer: Answer) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
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


@pytest.mark.long
@pytest.mark.parametrize("status", [410, 415])
async def test_an_answer_that_ends_kopf_is_told(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins again some times; an operator that went on would hear of nothing any more."""
    monkeypatch.setattr("cloister_operator.handlers._MOST_ENDS", 2)
    ended, seen = asyncio.Event(), asyncio.Event()
    runner, server = await serve(refusing(status, seen))
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
    runner, server = await serve(refusing(503, seen))
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "kubeconfig", server))
    watcher = Watcher(lambda *_: None, ended.set)
    watcher.start()
    await seen.wait()
    await watcher.stop()
    assert not watcher._thread.is_alive()
    assert not ended.is_set()
    await runner.cleanup()


async def test_it_begins_again_when_its_watch_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, seen = asyncio.Event(), asyncio.Event()

    def observe(_resource: str, _kind: str | None, obj: JSON) -> None:
        listed = int(obj["metadata"]["resourceVersion"])
        if not server.refusals and listed > server.listed:
            seen.set()

    server = Forgetful()
    runner, address = await serve(server.answer)
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "kubeconfig", address))
    watcher = Watcher(observe, ended.set)
    watcher.start()
    try:
        async with asyncio.timeout(30):
            await seen.wait()
    finally:
        await watcher.stop()
        await runner.cleanup()
    assert not ended.is_set()
