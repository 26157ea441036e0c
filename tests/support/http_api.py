"""A Kubernetes API of a test's own, over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import kopf
from aiohttp import web

from cloister_operator.cluster.api import HttpApi

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
POD = {"metadata": {"name": "p", "resourceVersion": "7"}}


class Server:
    """An HTTP server that notes each request and answers as told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], str, Any]] = []
        self.answer: Answer = self.fine
        self.url = ""

    async def fine(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(POD)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(
            (
                request.method,
                request.path,
                dict(request.query),
                request.headers["Content-Type"],
                json.loads(body) if body else None,
            )
        )
        return await self.answer(request)

    def answers(self, status: int, message: str = "why", **headers: str) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            body = {"kind": "Status", "message": message}
            return web.json_response(body, status=status, headers=headers)

        self.answer = answer

    def streams(self, *chunks: bytes) -> None:
        """Answer with these pieces, one after the other."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for chunk in chunks:
                await response.write(chunk)
                await asyncio.sleep(0)
            return response

        self.answer = answer

    def hangs_up(self) -> None:
        """Read the request, and close the connection instead of answering."""

        async def answer(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self.answer = answer


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    """Such a server, on a port of this machine."""
    made = Server()
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = "http://{}:{}".format(*runner.addresses[0][:2])
    yield made
    await runner.cleanup()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[HttpApi]:
    """A client of it."""
    made = await HttpApi.connect(lambda: kopf.ConnectionInfo(server=server.url))
    yield made
    await made.close()
