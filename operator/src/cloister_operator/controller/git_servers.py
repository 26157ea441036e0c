"""Which address stands for a git server: it is looked up once, checked, and dialed."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..plan.git import dialable
from ..settings import Settings
from ..sources.cache import Cache
from ..sources.fetcher import Fetcher, FetchFailed, Resolve

log = logging.getLogger(__name__)

LOOKUP_SECONDS = 10.0
Lookup = Callable[[str, int], Awaitable[list[str]]]
"""All addresses of a host; raises OSError."""


async def lookup(host: str, port: int) -> list[str]:
    """All addresses of a host, as the operator's own resolver has them; raises OSError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LOOKUP_SECONDS):
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


def resolver(
    settings: Settings,
    ranges: Callable[[], tuple[str, ...] | None],
    look_up: Lookup = lookup,
) -> Resolve:
    """How addresses of git servers are found: `ranges` are the cluster's own, None while they are
    not known.
    """

    async def resolve(host: str, port: int) -> str:
        own = ranges()
        if own is None:
            raise FetchFailed(
                "failed", "is not fetched before the cluster's own addresses are known"
            )
        try:
            found = await look_up(host, port)
        except (OSError, UnicodeError):
            raise FetchFailed("unreachable", f"is not found: {host} has no address") from None
        # One that leads inside among them is no mistake of an honest server.
        if not found or not all(dialable(each, own, settings.git_private_ranges) for each in found):
            raise FetchFailed(
                "not-allowed",
                f"is not fetched: {host} leads to an address inside, where the operator fetches "
                "nothing but from git.privateRanges in the chart's values",
            )
        return found[0]

    return resolve


def fetcher(settings: Settings, ranges: Callable[[], tuple[str, ...] | None]) -> Fetcher | None:
    """What fetches; None where its disk cannot be used."""
    try:
        cache = Cache(Path(settings.git_cache))
    except OSError as error:
        log.error("nothing is fetched from git: %s: %s", settings.git_cache, error.strerror)  # noqa: TRY400
        return None
    return Fetcher(cache, resolver(settings, ranges), settings.git_ca_bundle)
