"""Stands between an operator and its API server, and does to its calls what a test says.

It also knows what the operator asked for: how many writes, and which deletions.
"""

import asyncio
import contextlib
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum

import aiohttp
from aiohttp import web

from cloister_operator.cluster.resources import Resource

_OBJECT = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
    r"(?:/(?P<sub>[^/]+))?"
)
_UNDECIDED = frozenset({"events", "leases", "subjectaccessreviews", "tokenreviews"})
"""Nobody's next step depends on writes to these."""
_DROPPED = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "transfer-encoding"}
)


class Kind(Enum):
    """What happens to a call."""

    BUSY = "429 with Retry-After"
    BROKEN = "500"
    AWAY = "503"
    CONFLICT = "409, and nothing happens"
    RESET = "the connection ends before the server hears of it"
    LOST = "the server does it, and the connection ends without an answer"
    DELAY = "the server hears of it later"
    LATE = "the answer comes later"
    STALL = "the server does it, and no answer ever comes"
    HOLD = "a watch's events come later, all at once"
    CUT = "a watch ends"
    GONE = "a watch's version is too old"


@dataclass(frozen=True)
class Fault:
    """One fault; `seconds` is how long it lasts, or when a watch is cut."""

    kind: Kind
    seconds: float = 0.0


@dataclass(frozen=True)
class Call:
    """What the operator asks for."""

    method: str
    path: str
    watch: bool
    namespace: str
    plural: str
    name: str
    sub: str

    @property
    def writes(self) -> bool:
        """Whether it changes what a decision depends on."""
        return self.method != "GET" and self.plural not in _UNDECIDED

    def __str__(self) -> str:
        parts = (self.plural, self.name, self.sub)
        return f"{self.method} {'/'.join(each for each in parts if each)}"


class Dropped(Exception):
    """The connection to the operator is to end without an answer."""


class ApiProxy:
    """An API server with an administrator's rights for whoever asks; `happened` counts faults."""

    def __init__(self, server: str, tls: ssl.SSLContext) -> None:
        self._server = server
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self.port = 0
        self.choose: Callable[[Call], Fault | None] = lambda _: None
        """What goes wrong with a call."""
        self.before: Callable[[Call], None] = lambda _: None
        """Told of a call that the server is about to get; may raise Dropped."""
        self.after: Callable[[Call], None] = lambda _: None
        """Told of a call that was answered, before the answer goes on; may raise Dropped."""
        self.deleted: set[tuple[str, str, str]] = set()
        """Plural, namespace and name of what it asked to delete."""
        self.happened: Counter[Kind] = Counter()
        self.forgiven = asyncio.Event()
        """Set: nothing waits any more."""

    def deletes(self, resource: Resource, namespace: str, name: str) -> bool:
        """Whether the operator asked to delete this."""
        return (resource.plural, namespace, name) in self.deleted

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one call."""
        call = _call(request)
        fault = self.choose(call)
        if fault:
            self.happened[fault.kind] += 1
        try:
            if call.watch:
                return await self._watch(request, fault)
            return await self._answer(request, call, fault)
        except (Dropped, aiohttp.ClientError):
            if request.transport is not None:
                request.transport.abort()
            # Nobody receives it.
            return web.Response(status=502)

    async def _answer(
        self, request: web.Request, call: Call, fault: Fault | None
    ) -> web.StreamResponse:
        body = await request.read()
        kind = fault.kind if fault else None
        if fault and kind in _REFUSALS:
            return _refusal(kind)
        if kind is Kind.RESET:
            raise Dropped
        if fault and kind is Kind.DELAY:
            await self._pause(fault.seconds)
        self.before(call)
        if call.method == "DELETE":
            self.deleted.add((call.plural, call.namespace, call.name))
        async with self._forward(request, body) as response:
            content = await response.read()
            made = web.Response(
                status=response.status, body=content, headers=_headers(response.headers)
            )
        self.after(call)
        if kind is Kind.LOST:
            raise Dropped
        if fault and kind in (Kind.LATE, Kind.STALL):
            await self._pause(fault.seconds)
            if kind is Kind.STALL:
                raise Dropped
        return made

    async def _watch(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        kind = fault.kind if fault else None
        if fault and kind in _REFUSALS:
            return _refusal(kind)
        if kind in (Kind.RESET, Kind.LOST):
            raise Dropped
        loop = asyncio.get_running_loop()
        began = loop.time()
        seconds = fault.seconds if fault else 0.0
        async with self._forward(request, b"") as response:
            made = web.StreamResponse(status=response.status, headers=_headers(response.headers))
            await made.prepare(request)
            while True:
                left = None if kind is not Kind.CUT else max(0.0, began + seconds - loop.time())
                try:
                    async with asyncio.timeout(left):
                        piece = await response.content.readany()
                except TimeoutError:
                    raise Dropped from None
                if kind in _SLOW and (wait := began + seconds - loop.time()) > 0:
                    await self._pause(wait)
                if not piece:
                    return made
                await made.write(piece)

    def _forward(
        self, request: web.Request, body: bytes
    ) -> "aiohttp.client._RequestContextManager":
        assert self._session
        return self._session.request(
            request.method,
            self._server + request.raw_path,
            data=body or None,
            headers=_headers(request.headers),
            allow_redirects=False,
        )

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.forgiven.wait()

    @contextlib.asynccontextmanager
    async def serve(self, tls: ssl.SSLContext) -> AsyncIterator[None]:
        """Listen on loopback."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, trust_env=False
        ) as self._session:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            self.port = runner.addresses[0][1]
            try:
                yield
            finally:
                self.forgiven.set()
                await runner.cleanup()


_REFUSALS = {
    Kind.BUSY: (429, "TooManyRequests"),
    Kind.BROKEN: (500, "InternalError"),
    Kind.AWAY: (503, "ServiceUnavailable"),
    Kind.CONFLICT: (409, "Conflict"),
    Kind.GONE: (410, "Expired"),
}
_SLOW = (Kind.HOLD, Kind.DELAY, Kind.LATE, Kind.STALL)


def _refusal(kind: Kind | None) -> web.Response:
    assert kind
    code, reason = _REFUSALS[kind]
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}}
    return web.json_response(
        status | {"code": code, "reason": reason, "message": "by the test's will"},
        status=code,
        headers={"Retry-After": "1"} if code == 429 else {},
    )


def _headers(given: "aiohttp.typedefs.LooseHeaders") -> dict[str, str]:
    kept = {}
    for key, value in dict(given).items():
        if key.lower() not in _DROPPED and key.lower() not in ("authorization", "content-encoding"):
            kept[str(key)] = str(value)
    return kept


def _call(request: web.Request) -> Call:
    found = _OBJECT.match(request.path)
    parts = found.groupdict(default="") if found else {}
    return Call(
        request.method,
        request.path,
        request.query.get("watch") in ("true", "1"),
        parts.get("namespace", ""),
        parts.get("plural", ""),
        parts.get("name", ""),
        parts.get("sub", ""),
    )
