"""An HTTP server that nobody keeps from others: anybody in the cluster may connect.

Needs aiohttp, which the operator and the egress gateway have, and the others have not.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from aiohttp import web

MOST = 256
"""Connections at the same time."""
SECONDS = 30.0
"""How long one lasts at most, whatever its end does not send or does not take."""
log = logging.getLogger(__name__)
_unheard = log.getChild("unheard")
"""What anybody sends who speaks no HTTP would be an error in the log, with their words in it."""
_unheard.setLevel(logging.CRITICAL)
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Visitors(web.Server):
    """One request for each connection, and no more connections than there is room for.

    When there are too many, the oldest of the address that has most is ended: the kubelet, whose
    unanswered questions would end this process, is heard whoever else has all places.
    """

    def __init__(self, handler: Handler, most: int = MOST, seconds: float = SECONDS) -> None:
        """`most`: connections; `seconds`: of one connection."""

        async def once(request: web.BaseRequest) -> web.StreamResponse:
            try:
                response = await handler(request)
            except Exception:
                log.exception("a request was not answered")
                response = web.Response(status=500)
            response.force_close()
            return response

        super().__init__(once, access_log=None, logger=_unheard)
        self._most = most
        self._seconds = seconds
        self._known: dict[web.RequestHandler, tuple[str, asyncio.Transport, asyncio.Handle]] = {}
        """The oldest first."""
        self._by_address: Counter[str] = Counter()

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """See web.Server."""
        super().connection_made(handler, transport)
        address = str((transport.get_extra_info("peername") or ("",))[0])
        end = asyncio.get_running_loop().call_later(self._seconds, transport.abort)
        self._known[handler] = address, transport, end
        self._by_address[address] += 1
        if len(self._known) > self._most:
            self._end_one()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """See web.Server."""
        self._forget(handler)
        super().connection_lost(handler, exc)

    def _end_one(self) -> None:
        ((crowded, _),) = self._by_address.most_common(1)
        for handler, (address, transport, _) in self._known.items():
            if address == crowded:
                self._forget(handler)
                transport.abort()
                return

    def _forget(self, handler: web.RequestHandler) -> None:
        known = self._known.pop(handler, None)
        if known is None:
            return
        address, _, end = known
        end.cancel()
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
