"""A Kubernetes API server with just what the client library asks of one."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

SYSTEM = "cloister-system"
SANDBOXES = "cloister-sandboxes"
OPERATOR_POD = "cloister-operator-0"
TOKEN = "issued-token"


@dataclass
class FakeKube:
    """What the server answers with; tests change it as they like."""

    client_config: dict[str, str] | None = None
    """The ConfigMap for clients; None means that Cloister is not installed."""
    next_config: dict[str, str] | None = None
    """What it becomes once it was read."""
    environments: list[dict[str, Any]] | None = field(default_factory=list)
    """None means that the cluster does not know the kind."""
    page: str = ""
    """What something between answers instead of Environments, with 200."""
    log: bytes = b""
    forwards: dict[str, int] = field(default_factory=dict)
    """Local port behind each pod."""
    forward_error: str = ""
    """Sent on the error channel of the next forwarded connection."""
    forwarded: list[str] = field(default_factory=list)
    """Pod and port of every forwarded connection."""
    open_forwards: int = 0
    operator_ready: bool = True
    callers: list[str | None] = field(default_factory=list)
    """The authorization header of every request."""
    port: int = 0

    def kubeconfig(self, directory: Path, token: str | None = None) -> str:
        """Write a kubeconfig for this server; returns its path."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}},
            ],
            "users": [{"name": "u", "user": {"token": token} if token else {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = directory / "kubeconfig"
        path.write_text(json.dumps(config))
        return str(path)

    async def read_config(self, request: web.Request) -> web.Response:
        if self.client_config is None or request.match_info["namespace"] != SYSTEM:
            return _status(404, 'configmaps "cloister-client-config" not found')
        found = self.client_config
        if self.next_config is not None:
            self.client_config, self.next_config = self.next_config, None
        return web.json_response({"data": found})

    async def issue_token(self, request: web.Request) -> web.Response:
        if request.match_info["namespace"] != SANDBOXES:
            return _status(404, 'serviceaccounts "cloister-worker" not found')
        asked = await request.json()
        answer = {
            "spec": {**asked["spec"], "audiences": ["api"]},
            "status": {"token": TOKEN, "expirationTimestamp": "2100-01-01T00:00:00Z"},
        }
        return web.json_response(answer, status=201)

    async def list_pods(self, request: web.Request) -> web.Response:
        assert "component=operator" in request.query["labelSelector"]
        ready = {"type": "Ready", "status": str(self.operator_ready)}
        unready = {"type": "Ready", "status": "False"}
        items = [
            {"metadata": {"name": "starting"}, "status": {"conditions": [unready]}},
            {"metadata": {"name": OPERATOR_POD}, "status": {"conditions": [ready]}},
        ]
        return web.json_response({"items": items})

    async def read_log(self, request: web.Request) -> web.Response:
        if request.match_info["pod"] not in self.forwards:
            return _status(404, "pods not found")
        return web.Response(body=self.log)

    async def list_environments(self, request: web.Request) -> web.Response:
        if request.match_info["namespace"] != SANDBOXES:
            return _status(403, "environments.cloister.dev is forbidden")
        if self.page:
            return web.Response(text=self.page, content_type="text/html")
        if self.environments is None:
            return web.Response(status=404, text="404 page not found\n")
        return web.json_response({"items": self.environments})

    async def forward(self, request: web.Request) -> web.StreamResponse:
        pod = request.match_info["pod"]
        if pod not in self.forwards:
            return _status(404, f"pods {pod} not found")
        self.forwarded.append(f"{pod}:{request.query['ports']}")
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        number = int(request.query["ports"]).to_bytes(2, "little")
        await socket.send_bytes(b"\0" + number)
        await socket.send_bytes(b"\1" + number)
        if self.forward_error:
            await socket.send_bytes(b"\1" + self.forward_error.encode())
            self.forward_error = ""
            return socket
        self.open_forwards += 1
        try:
            await _relay(socket, self.forwards[pod])
        finally:
            self.open_forwards -= 1
        return socket


async def _relay(socket: web.WebSocketResponse, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def back() -> None:
        while data := await reader.read(32_768):
            await socket.send_bytes(b"\0" + data)
        await socket.close()

    task = asyncio.create_task(back())
    async for message in socket:
        if message.type is WSMsgType.BINARY and message.data[0] == 0:
            writer.write(message.data[1:])
            await writer.drain()
    task.cancel()
    writer.close()


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "message": message, "code": code}, status=code)


def _application(kube: FakeKube) -> web.Application:
    @web.middleware
    async def note(request: web.Request, handler: Any) -> Any:
        kube.callers.append(request.headers.get("authorization"))
        return await handler(request)

    app = web.Application(middlewares=[note])
    core = "/api/v1/namespaces/{namespace}"
    app.router.add_get(core + "/configmaps/cloister-client-config", kube.read_config)
    app.router.add_post(core + "/serviceaccounts/cloister-worker/token", kube.issue_token)
    app.router.add_get(core + "/pods", kube.list_pods)
    app.router.add_get(core + "/pods/{pod}/log", kube.read_log)
    app.router.add_get(core + "/pods/{pod}/portforward", kube.forward)
    app.router.add_get(
        "/apis/cloister.dev/v1alpha1/namespaces/{namespace}/environments", kube.list_environments
    )
    return app


@contextlib.contextmanager
def fake_kube() -> Iterator[FakeKube]:
    """Serve on a loopback port, in a thread."""
    kube = FakeKube()
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(_application(kube), shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        kube.port = runner.addresses[0][1]

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield kube
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
