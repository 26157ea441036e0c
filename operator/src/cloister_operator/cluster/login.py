"""Where the API server is, and who the operator is to it, both as kopf finds them.

Its logins need no client library: the official one takes 5 MB of memory for what is not used here.
"""

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Callable

import kopf

from .. import names

TOKEN_SECONDS = 60.0
"""After this a token is read again: the kubelet replaces it long before it ends."""
log = logging.getLogger(__name__)
Find = Callable[[], kopf.ConnectionInfo | None]


def api_server() -> str:
    """host:port of the API server, as the kubelet tells every pod."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return names.joined(host, port)


def find() -> kopf.ConnectionInfo | None:
    """In the cluster the ServiceAccount's identity, outside the kubeconfig's; None without both.

    Raises OSError, kopf.LoginError, and KeyError for a kubeconfig that names what is not in it.
    """
    settings = kopf.OperatorSettings()
    # Proxies named in the environment are for the internet, not for the API server.
    settings.networking.trust_env = False
    account = kopf.login_with_service_account(settings=settings)
    if account is None:
        return kopf.login_with_kubeconfig(settings=settings)
    # By address, as every other in-cluster client: a cluster need not have DNS.
    return dataclasses.replace(account, server=f"https://{api_server()}")


class Login:
    """Who the operator is, now: what proves it is read again while it is used."""

    def __init__(
        self,
        first: kopf.ConnectionInfo,
        find: Find = find,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`first`: what `find` found; `clock`: monotonic seconds."""
        self.server = first.server.rstrip("/")
        self._find = find
        self._clock = clock
        self._headers = first.as_http_headers()
        self._read_at = clock()

    async def headers(self) -> dict[str, str]:
        """What a request carries to be the operator's."""
        if self._clock() >= self._read_at + TOKEN_SECONDS:
            self._read_at = self._clock()
            try:
                found = await asyncio.to_thread(self._find)
            except (OSError, kopf.LoginError, KeyError) as error:
                # What is known may do: the API server decides.
                log.warning("the operator's identity cannot be read again: %s", error)
                found = None
            if found is not None:
                self._headers = found.as_http_headers()
        return self._headers
