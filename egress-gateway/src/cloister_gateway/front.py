"""haproxy's runtime socket: which connections there are, and the end of those of one source."""

import asyncio
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from .ranges import plain
from .reports import Client

_SESSION = re.compile(r"(0x[0-9a-f]+): proto=tcpv[46] src=(\S+):(\d+) fe=sandboxes ")
_REFUSED = re.compile(r"key=(\S+) .*\bgpc0=(\d+)")
_TIMEOUT = 5.0
_AT_ONCE = 64
"""Commands in one line; haproxy bounds its length."""
_PAUSE = 0.01
_END = "shutdown session {0}"
_STILL = f"debug dev stream strm={{0}} req.f-{0x6000:#x} req.w=now res.w=now; {_END}"
"""An end by itself waits until what is under way was taken, and nobody has to take it: a sandbox
that reads nothing would keep its connection for as long as one may be idle. So its time to be taken
runs out first; and as haproxy wakes nobody whom it tells twice, it forgets that it was told
(CF_SHUTW and CF_SHUTW_NOW). Only an end looks whether its connection is still there: whom the rest
would wake by itself may be gone by now, and haproxy with them.
"""


class FrontUnreachable(Exception):
    """haproxy is there, and does not answer as it should."""


class Session(NamedTuple):
    """One connection from a sandbox."""

    id: str
    address: str
    port: int


def sessions(answer: str) -> list[Session]:
    """The sandboxes' connections in the answer to `show sess`."""
    found = []
    for each in _SESSION.finditer(answer):
        found.append(Session(each[1], str(plain(each[2].strip("[]"))), int(each[3])))
    return found


def refused(answer: str) -> dict[str, int]:
    """By source, how many connections were refused, in the answer to `show table`."""
    return {str(plain(each[1])): int(each[2]) for each in _REFUSED.finditer(answer)}


class Front:
    """Calls to haproxy; nothing listening there is a haproxy that is gone, with its connections."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def cut(self, addresses: frozenset[str], seconds: float = _TIMEOUT) -> int:
        """End all connections that these addresses have now; returns how many there were.

        Raises FrontUnreachable when some are left after `seconds`, or haproxy does not answer.
        """
        return await self._cut(lambda each: each.address in addresses, seconds)

    async def end(self, clients: Collection[Client], seconds: float = _TIMEOUT) -> int:
        """End the connections that these ends of sandboxes have; as `cut`."""
        return await self._cut(lambda each: Client(each.address, each.port) in clients, seconds)

    async def cut_all(self, seconds: float = _TIMEOUT) -> int:
        """End all connections that there are now; as `cut`."""
        return await self._cut(lambda _: True, seconds)

    async def _cut(self, condemned: Callable[[Session], bool], seconds: float) -> int:
        try:
            async with asyncio.timeout(seconds):
                left = first = {each for each in await self.sessions() if condemned(each)}
                end = _END
                while left:
                    ids = sorted(each.id for each in left)
                    for at in range(0, len(ids), _AT_ONCE):
                        part = ids[at : at + _AT_ONCE]
                        await self._ask(";".join(["expert-mode on", *map(end.format, part)]))
                    # Those that come meanwhile were decided by the new state.
                    await asyncio.sleep(_PAUSE)
                    left, end = first.intersection(await self.sessions()), _STILL
        except TimeoutError:
            raise FrontUnreachable("haproxy did not end the connections in time") from None
        return len(first)

    async def sessions(self) -> list[Session]:
        """All connections of sandboxes; FrontUnreachable."""
        return sessions(await self._ask("show sess"))

    async def refused(self) -> dict[str, int]:
        """By source, how many connections were over its bounds lately; FrontUnreachable."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                return refused(await self._ask("show table sandboxes data.gpc0 gt 0"))
        except TimeoutError:
            raise FrontUnreachable("haproxy does not answer in time") from None

    async def alive(self) -> bool:
        """Whether haproxy answers."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                return "Version" in await self._ask("show info")
        except (TimeoutError, FrontUnreachable):
            return False

    async def _ask(self, command: str) -> str:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except (FileNotFoundError, ConnectionRefusedError):
            return ""
        except OSError as error:
            raise FrontUnreachable(f"haproxy's socket: {error.strerror}") from None
        try:
            writer.write(command.encode() + b"\n")
            answer = await reader.read(-1)
        except OSError as error:
            raise FrontUnreachable(f"haproxy's socket: {error.strerror}") from None
        finally:
            writer.close()
        return answer.decode("ascii", "replace")
